"""Plots with a little wonder: a hidden garden, a fallen star, a lonely giant."""

from __future__ import annotations

from minillm.data.stories.opening import close_story
from minillm.data.stories.teller import Teller


def garden(t: Teller) -> None:
    """A key, a hidden door, a sleeping garden that wakes up in time for a party."""
    t.paragraph()
    t.say(
        "<when>, <hero> {found|discovered|saw} a {small|rusty|little} <colour:colour> key <spot>.",
        "<when>, [hero]'s <family:giver> gave [him] a {small|rusty|little} <colour:colour> key. "
        '"{It opens a secret|Find the door}," said [his] [giver].',
    )
    t.say(
        '"{What does it open|Where is the door|What could it be for}?" asked {[pal]|[hero]}.',
        "It did not {open|fit} {the cupboard|the front door|any box}, {nor|or} the {barn|shed|school|tower}.",
    )
    t.say(
        "{Then|At last}, behind {the <old><place:place>|an old wall}, <hero> {saw|found} a "
        "{tiny|hidden|low} door. The [colour] key {turned|fitted}! {Click|Creak}!",
        "<They> {looked|searched} {everywhere|all day}. Near the [mark], {under green "
        "leaves|behind a bush}, was a {tiny|hidden|secret} door, and the [colour] key "
        "{turned|fitted}.",
    )
    t.paragraph()
    t.say(
        "Behind {it|the door} was a garden, but it was {grey|dry|dry and still|fast asleep}. "
        "{No bird sang|Nothing moved|Nothing grew}.",
        "Inside {lay|slept} {an old|a forgotten} garden. {All the flowers hung their "
        "heads|There was only dust|Everything was dry}, {and no bird sang|and it was quite still}.",
    )
    t.say(
        '{On|By} {a bench|a dry fountain|a stone} sat an old <wise:keeper>. "{I am too old|I am '
        'too tired|My back hurts too much} to {work|dig}," {said|sighed} the [keeper]. "{Nobody '
        'comes here|The garden has been forgotten|I miss the flowers}{.*3|!*2}"',
        'An old <wise:keeper> {came out|looked up}. "{Nobody has come|No one has been here} for '
        '{many|a hundred|seven} years," {said|sighed} the [keeper].',
    )
    t.say(
        '"{Then we will help|We can help|Let us wake it up}!" {said|cried|called|shouted} {[hero]|[pal]}.',
        '<Hero> looked at <pal>, and <pal> {nodded|smiled}. "{We will help you|We will come '
        'every day}," [he] {said|promised}.',
    )
    t.paragraph()
    t.say(
        "{Every day|Each afternoon}, they {pulled weeds|carried water|dug the ground|swept the "
        "paths} and {planted|sowed} <flower:bloom>{ and <fruit>|}.",
        "<Hero> {dug|raked}, and <pal> {carried water|pulled weeds|sang to the seeds}. They "
        "planted <flower:bloom> {in long rows|around the bench|by the wall}.",
    )
    t.say(
        '{At first,|For a long time,} nothing {grew|happened}. "{Be patient|Wait}," '
        '{said*4|answered|replied|explained} the [keeper]. "{Good things take time|Seeds sleep '
        'before they wake|They need sun and a song}{.*3|!*2}"',
        "{One week|Two weeks|Three weeks} {went by|passed}, and {nothing came up|the ground "
        "stayed bare}. {Then it rained|Then the sun came out}{ at last|}.",
        "{But one night|One night}, a {mole|cold wind} took {half of the seeds|the little "
        "plants}. They {did not give up|began again|started over}.",
    )
    t.say(
        "And one morning, the [bloom] were {open|in bloom|there}! The garden was "
        "{green|bright|full of colour} {again|once more}, and {birds sang in every tree|bees "
        "danced everywhere|a <little><wild> sat on every leaf}.",
        "Then {it happened|came a <nice> morning}: the [bloom] opened, {one after the other|all "
        "at once}, and {the whole garden woke up|a <little><wild> came, and another one|it "
        "smelled sweet}.",
    )
    t.paragraph()
    t.say(
        "{On Sunday|The next day|That evening}, they {opened the door wide|gave a party}. {The "
        "whole [home]|Everyone from the [home]} came{, and the [keeper] danced|, and the "
        "[keeper] cried for joy|}.",
        'The [keeper] {gave|handed} <hero> the [colour] key. "{It is your garden now|Now it '
        'belongs to you both}," {said*4|answered|replied|explained} the [keeper].',
    )
    close_story(
        t,
        "And the {little|tiny} door {was never locked again|stayed open for ever}.",
        "{Love and patience|Water and patience} can {wake|wake up} {any|every} garden.",
    )


def star(t: Teller) -> None:
    """A star falls into the garden and is helped back into the sky."""
    t.paragraph()
    t.say(
        "One {clear|warm|quiet|cold} night, <hero> {could not sleep|sat by the window|looked "
        "out of the window}. {Suddenly|All at once}, {something fell|a little light fell} from "
        "the sky{ behind the <old><place:place>| near the <old><place:place>}.",
        "One {clear|warm|quiet|cold} night, [hero] and [pal] {were counting stars|lay in the "
        "grass|looked up at the sky}. {Suddenly|Then}, one {star|little star} fell "
        "{near|behind} the <old><place:place>.",
    )
    t.say(
        "<Hero> {ran|hurried} {outside|there} {in [his] pyjamas|with bare feet|with a lamp}{, "
        "and [pal] came too|, and [pal] came running}.",
        '"{Did you see that|What was that}?" <asked_pal>. They <went> {to look|there at once|closer}.',
    )
    t.say(
        "There, <spot>, lay a {tiny|little|small} star. It was {crying|cold|pale|no bigger than a plum}.",
        "A {tiny|little|small} star was sitting <spot>. {It was crying|It shone only a little|Its light was weak}.",
    )
    t.paragraph()
    t.say(
        '"{I fell out of bed|I was dancing too fast|I leaned out too far}," '
        '{said|sobbed|sniffed} the star. "{The moon will miss me|I want to go home|I am so far '
        'from home}{.*3|!*2}"',
        '"{Please help me|I want to go home}," {said|sobbed|sniffed} the star. "{I slipped|I '
        'leaned out too far|I was dancing} and fell{.*3|!*2}"',
    )
    t.say(
        "{First|At first|To begin with}, they {threw|tried to throw} it {up|high up}, but it "
        "{came down|fell} {again|once more}. {Plop|Bump}!",
        "{First|At first|To begin with}, <hero> climbed {the <colour> ladder|the tallest "
        "tree|onto the roof}, but the sky was {still too far|much too high}.",
    )
    t.say(
        "{Then|Next,|After that,|So} they tied it to a <colour:colour> {kite|balloon}, but "
        "{there was no wind|the string was too short|it was too heavy|it got stuck in a tree}.",
        "Then <pal> asked a {sparrow|big goose|robin} to {carry it|take it}, but {the star was "
        "too hot|it was too bright|the bird was too sleepy}.",
    )
    t.maybe(
        "The star's light {grew|became} {weaker|smaller}. They {had to hurry|had not much time}.",
        '"{Do not cry|We will find a way}{,*3|!*2}" <said_hero>, and {gave it|brought it} '
        "{<drink>|a cookie|a warm blanket}.",
        p=0.6,
    )
    t.paragraph()
    t.say(
        'Then <hero> had {an idea|a good idea|a clever idea|a plan}. "{You are heavy because '
        'you are sad|Only a happy star can fly}," [he] said. "{We must make you laugh|Let us '
        'sing for you|Let us dance for you}!"',
        '"{I know|Wait}!" <cried_hero>. "{Stars fly when they are happy|A happy heart is '
        "light|Sad stars are heavy}. {Let us tell it jokes|Let us make it laugh|We must cheer "
        'it up}!"',
    )
    t.say(
        "<Hero> {sang a silly song|made a funny face|told a joke about a <animal>}, and <pal> "
        "{danced on one leg|wore a bucket as a hat|fell into a puddle}.",
        "<Pal> {danced on one leg|put a <colour> sock on [pal_his] nose|walked like a "
        "<animal>}, and <hero> {sang|clapped|laughed|made music on a pot}.",
    )
    t.say(
        "The star {giggled|laughed|smiled}. It {began to shine|shone brighter and brighter}, "
        "{and slowly it rose|and up it went}, {higher and higher|over the [mark]|up and up}.",
        '"{Ha ha|Hee hee}!" {went|said} the star. It {grew bright|shone like the sun} and '
        "{floated|flew} up, {over the [mark]|higher and higher|past the clouds}, {until it was "
        "home|back to the moon}.",
    )
    t.say(
        "{And now|Since then}, {every night|each night}, one star {winks|blinks} at <hero>.",
        '"{Thank you|Goodbye|Good night}, [hero] and [pal]!" it called{| from far away}.',
    )
    t.paragraph()
    close_story(
        t,
        "{Laughter|A good laugh} can {lift|carry} you {up to the sky|very high}.",
        "Look up tonight, and {maybe it will wink at you too|you may see it}.",
    )


def lonely_giant(t: Teller) -> None:
    """Everybody is afraid of somebody big; the hero goes to see, and finds a friend."""
    t.paragraph()
    t.say(
        "{Near|Beyond|Behind} the [mark] lived a {huge|big|great} {green|blue|purple|silver"
        "|red} <monster:monster>. {Everyone|Everybody} was afraid of {it|its loud voice|its big "
        "feet}.",
        "Now, {near|beyond|behind} the [mark] there {lived|was} a {huge|big|great} "
        '{green|blue|purple|silver|red} <monster:monster>. "{Never go there|Stay away from '
        'it}," {people said|said the <good><neighbour>|everyone said}.',
    )
    t.paragraph()
    t.say(
        "<when>, {a loud noise|a deep sound|a strange sound} came from beyond the [mark]. "
        "{Everyone|All the people} {hid <under>|ran home|shut the windows}.",
        "<when>, [hero] and [pal] {played|were playing} with a ball. {It flew|The ball rolled} "
        "{over the fence|far away|over the wall}, {right to the feet|right to the door|right "
        "into the cave} of the [monster].",
    )
    t.say(
        '"{Maybe it is sad|Perhaps it is kind|Maybe it is only lonely}{,*3|!*2}" <said_hero>. '
        '"{Let us go and see|I will go and look|Come with me}{.*3|!*2}"',
        "<Pal> was scared, but <hero> {took [pal_his] hand|was curious|went on}.",
    )
    t.say(
        "<They> <went>{*3| <pace>*2} {up the hill|through the trees|over the stones}{, past the "
        "<old><place>,|} {until they saw it|and there it was}.",
        "With {shaking knees|beating hearts|soft steps}, they {came|got} {closer|nearer}.",
    )
    t.paragraph()
    t.say(
        "There {sat|was sitting} the [monster], {with a tear on its nose|all alone|with a "
        'little cake and one candle}. "{Nobody ever visits me|Everyone runs away from me|It is '
        'my birthday, and nobody came}," it {sobbed|said|sighed}.',
        '"{Please do not run away|Do not be afraid}," {said*4|answered|replied|explained} the '
        '[monster]. "{I only want a friend|I am so lonely|I have {nobody|no one} to play '
        'with}{.*3|!*2}"',
    )
    t.say(
        '"{I am [hero], and this is [pal]|We are not afraid of you|We will stay}{,*3|!*2}" '
        '<said_hero>. "{What is your name|What do you like to play|Do you like <hobby>}?"',
        "<Hero> {gave|offered} it {some <food>|half of [his] <treat>|[his] handkerchief}{, and [pal] said hello|}.",
    )
    t.say(
        '"My name is <place_name:monster_name>," {said*4|answered|replied|explained} the '
        '[monster], "and {I love|I like} {to sing|to cook|to dance|<flower>|<fruit>}{.*3|!*2}"',
        'The [monster] {smiled|wiped its eyes|sat up}. "{My friends would call me|My name is} '
        '<place_name:monster_name>," it said.',
    )
    t.maybe(
        "<They> played {ball|hide and seek} {all afternoon|until the sun went down}, but "
        "[monster_name] was {hard to hide|too big to hide|always found first}.",
        "[Monster_name] {made|cooked} {a mountain of|a huge pot of|a bathtub of} <food>, and "
        "{it was <nice>|they ate until they were full}.",
        p=0.7,
    )
    t.paragraph()
    t.say(
        "Then {winter|a cold winter|a hard frost} came, and {there was no wood in the "
        "[home]|all the stoves were cold|the snow closed the road}. Only [monster_name] was "
        "{strong enough|big enough} to {help|clear the way|carry the great logs}.",
        "{A week later|One day}, {a tree fell on the bridge|a cart got stuck in the mud|a big "
        'rock blocked the road}, and nobody could {move it|lift it}. "{I know who can|I will '
        'call a friend}{,*3|!*2}" <said_hero>, and {fetched|called} [monster_name].',
    )
    t.say(
        "{One push|One pull|One big breath}, and {it was done|all was well}. {The "
        "people|Everyone} {stared|clapped|cheered}.",
        "The [monster] helped {with one hand|all day long|gently and carefully}, and {the "
        "people|everyone} {stared|cheered|came closer}.",
    )
    t.say(
        '"{We were wrong about you|We are sorry|Thank you, [monster_name]}," said the '
        '<good><neighbour>. "{Will you stay for dinner|Will you come to our party|Would you '
        'like some <food>}?"',
        "{That evening|On Sunday}, there was a party {with <food> and <drink>|with music}, and "
        "[monster_name] {sat at the long table|danced with everyone|got the biggest chair}.",
    )
    t.paragraph()
    close_story(
        t,
        "And [monster_name] was {never lonely again|not alone any more}.",
        "{Somebody|A person} who looks {big and scary|strange} may {only need a friend|have a soft heart}.",
    )
