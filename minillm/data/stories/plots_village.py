"""Plots in the village: a baking contest, a race, a storm."""

from __future__ import annotations

from minillm.data.stories.opening import close_story
from minillm.data.stories.teller import Teller


def baking_contest(t: Teller) -> None:
    """A contest, a mishap in the kitchen, and a surprise for the judges."""
    t.paragraph()
    t.say(
        "<when>, there was a {baking contest|cake contest} {at the <old><place:place>|in the "
        "[home]}. {The prize was|The winner would get} a <colour:colour> "
        "{apron|hat|spoon|cup|ribbon}.",
        '<when>, the <good><neighbour:judge> {said|told everyone}, "There will be a {baking '
        "contest|great baking contest}! The prize is a <colour:colour> "
        '{apron|hat|spoon|cup}{.*3|!*2}"',
    )
    t.say(
        '"{I want to win|I will bake something|Let us bake together}!" <cried_hero>. "{We will '
        'make|I will make|Let us make} a <flavour:flavour> <treat:treat>{.*3|!*2}"',
        "<Hero> {wanted|decided|hoped} to make {the best|the biggest|a wonderful} "
        "<flavour:flavour> <treat:treat>, and <pal> {wanted to help|was ready to help|came to "
        "help}.",
    )
    t.paragraph()
    t.say(
        "<They> {mixed|stirred} {flour|butter|sugar} and {eggs|milk|cream} in a {big|huge|<colour>} bowl.",
        "<Hero> {stirred|mixed} the {flour|butter|sugar}, and <pal> {broke the eggs|poured the "
        "milk|licked the spoon|sang a song}.",
    )
    t.say(
        "{But then|But|Then} {[pal] sneezed|the cat jumped on the table|a <little><wild> came "
        "in through the window|the bowl slipped}, and {flour flew everywhere|half of the dough "
        "fell on the floor|everything turned white}.",
        "But {oh dear|oh no}! {There was no sugar left|They had forgotten the sugar|The oven "
        "was cold|The first [treat] was burned}{!|.}",
    )
    t.say(
        '"{Now we will never win|All is lost|What a mess}{,*3|!*2}" <sad_hero>.',
        "[Hero] was <very> <sad> and sat down {on the floor|on a chair|in the corner}.",
    )
    t.say(
        '"{Wait|Don\'t give up}{,*3|!*2}" <said_pal>. "{I have some|My <family> has some|I know '
        'where to get} {honey|berries|nuts|butter|cream}. {Let us try again|We can start again}!"',
        "<Pal> <went> {home|to the <good><neighbour>|into the garden} and {came back|returned} "
        "with {a jar of honey|a basket of <fruit>|a bag of nuts|a cup of sugar}.",
    )
    t.maybe(
        "<They> {worked|baked} {all afternoon|until the moon came up|for hours}.",
        "Soon the {kitchen|whole house|whole street} smelled <nice>.",
        "This time, nobody {sneezed|laughed|was in a hurry}.",
    )
    t.paragraph()
    t.say(
        "{The next day|At the contest|Soon}, there were {pies|cakes|cookies} {as high as "
        "towers|in all colours|of every kind|with <flower> on top}. The [flavour] [treat] "
        "looked {small|plain|a little crooked} {beside them|next to them}.",
        "At the contest, the judges tried {everything|every cake|one bite of each}. At last, "
        "they {came to|reached|got to} the [flavour] [treat].",
    )
    t.say(
        "{The judges|The three judges} {tasted it|took a bite} and {closed their "
        'eyes|smiled|were quiet for a moment}. "{Mmm|Oh}! {This is the best of all|How good it '
        'is|How lovely}!"',
        "{One bite|One little bite} was enough. The judges {clapped|cheered|asked for more|wanted a second piece}.",
    )
    t.say(
        "<Hero> and <pal> {won|got} the [colour] prize{!| and shared it.}",
        "<They> {won|got} {second prize|third prize|first prize}, and {nobody|no one} could "
        "have been {happier|prouder}.",
        "Another baker {won|got} the prize, but {all the children wanted|everyone wanted} the "
        "[flavour] [treat], and that was {even better|just as good}.",
    )
    t.paragraph()
    close_story(
        t,
        "And every {Sunday|birthday|spring}, they baked a [flavour] [treat] {together|for "
        "everyone|for the whole [home]}.",
        "The {secret|best part} of the [treat] was {friendship|a friend who helps|doing it together}.",
    )


def race(t: Teller) -> None:
    """The hero trains for a race, stops in it to help somebody, and gets another prize."""
    t.paragraph()
    t.say(
        "<when>, {there was|the [home] held} a {great|big|<nice>} race from the "
        "<old><place:start> to the [mark]. The prize was a <colour:colour> <treasure:prize>.",
        '<when>, the <good><neighbour:judge> said, "{Tomorrow|On Sunday}, we will have a race '
        'to the [mark]! The winner gets a <colour:colour> <treasure:prize>{.*3|!*2}"',
    )
    t.say(
        '"{I want to win|I will run too|I will try}{,*3|!*2}" <said_hero>. "{Will you help '
        'me|Will you run with me|Do you think I can do it}, [pal]?"',
        "[Hero] had never won {a race|anything|a prize}, but [he] {wanted|decided} to {try|run}.",
    )
    t.say(
        "{Every day|Each morning}, [he] {ran|hurried|raced|rushed} {around|to} the <old><place> "
        "and back, and <pal> {counted|clapped|cheered|ran along}.",
        "<Pal> {helped [him]|showed [him] how} to {run fast|jump over puddles|breathe slowly}. "
        "They {practised|trained} {every morning|until it was dark|in the rain}.",
    )
    t.paragraph()
    t.say(
        '"{Ready, steady|One, two, three|On your marks}, go!" {called|shouted} a loud voice. '
        "{The <animal:rival> was the fastest|A <animal:rival> ran in front|In front ran a "
        "<animal:rival>}.",
        "The {race|great race} began. {A <animal:rival> was in front|The <animal:rival> ran "
        "like the wind}, but <hero> {was close behind|ran and ran|did not give up}.",
    )
    t.say(
        "{Halfway|Near the end}, the [rival] {tripped and fell|stumbled|fell down} {over a "
        'stone|in the mud|beside a puddle|over a root}. "{Ouch|Oh, my foot|Ow, my knee}!" it '
        "{cried|sobbed|said}.",
        "{Suddenly|Then}, the [rival] {fell down|lay in the mud|sat on the ground} and {held its foot|began to cry}.",
    )
    t.say(
        "The others {ran past|did not look}. [Hero] could {win now|be first now}! But [he] "
        "{stopped|turned around|slowed down}.",
        "Now <hero> {was first|could win}! {[He] looked at the [mark]|[He] could see the [mark] "
        "already}. Then [he] {stopped|turned back}.",
    )
    t.paragraph()
    t.say(
        '"{Lean on me|Take my hand|Come}{,*3|!*2}" <said_hero>. "{We will walk together|We can '
        'do it together|I will help you}{.*3|!*2}"',
        "<He> {tied a <colour> scarf around its foot|helped it up|gave it some water}, and "
        "{they went on together|arm in arm they walked on}.",
    )
    t.say(
        "They {came in|were} last, but {everyone|the whole [home]} {clapped loudly|cheered|stood up and clapped}.",
        "{Slowly, slowly|Step by step}, they {came|got} to the [mark]. [Pal] "
        "{cheered|clapped|shouted} the loudest of all.",
    )
    t.say(
        "The winner {came up|walked over} and {gave|brought|handed} <hero> the [colour] "
        '[prize]. "{This is for you|You are the real winner|You have earned it}," said the winner.',
        '{So|In the end,} the [colour] [prize] {went to|was given to} <hero>. "{A kind heart '
        'wins|You are the real winner|You won our hearts}," said the <good><neighbour>.',
    )
    t.maybe(
        '"{We will share it|It belongs to us both}{,*3|!*2}" <said_hero> {to|and hugged} the [rival].',
        "<Hero> {blushed|smiled} and did not know what to say.",
        "The [rival] became {[his] friend|a friend} too.",
    )
    t.paragraph()
    close_story(
        t,
        "{To be kind|Helping a friend} is {better|more important} than winning.",
        "The [prize] {stood|lay} on [his] shelf {for many years|for ever after}.",
    )


def storm(t: Teller) -> None:
    """A storm blows a little animal's home away; the hero gives it shelter."""
    t.paragraph()
    t.say(
        "<when>, the sky {turned|grew|became} {dark|black|grey}{ over the [mark]|}, and {the "
        "wind began to blow|a storm came|thunder rolled}.",
        "<when>, a {great|terrible|wild} storm came {over|from} the [mark]. The wind "
        "{howled|roared|whistled} {around the houses|in the trees|down the street}.",
    )
    t.say(
        "<Hero> and <pal> {sat|stayed} by the {fire|window|stove} with {some <drink>|a cup of "
        "tea|a warm blanket|a plate of <food>}.",
        "<Hero> {closed|shut} the {windows|doors}, and <pal> {lit|brought} {a candle|the lamp|a lantern}.",
    )
    t.say(
        "{Suddenly|Then|All at once}, they heard {a knock|a tiny voice|a cry|a tapping} {at the "
        "door|outside|at the window}.",
        '"{Listen|Hush}{,*3|!*2}" <said_pal>. "{Someone is|I hear someone} {outside|crying|at the door}{.*3|!*2}"',
    )
    t.paragraph()
    t.say(
        'It was a {tiny|small|wet|poor little} <wild:wild>. "The {wind|storm|rain} {took|blew '
        'away|broke} my {house|nest|home}," it {said|cried|sobbed|whispered}.',
        "On the {step|doorstep} sat a {tiny|small|wet|poor little} <wild:wild>, {cold and "
        'wet|shaking with cold|with water in its shoes}. "{Please help me|I have lost my '
        'home}," it {said|whispered}.',
    )
    t.say(
        '"{Come in|Come inside|Come to the fire}!" <cried_hero>{| at once}. {[He]|[Pal]} '
        "{gave|brought|handed} it {a <colour:colour> {blanket|towel|scarf|sock}|some <drink>|a "
        "spoon of honey|a bowl of soup}.",
        "<Hero> {dried|warmed} the [wild] {with a <colour:colour> {towel|scarf}|by the fire|in "
        "[his] hands} and {made a bed for it|gave it some <food>|sang to it} {in a teacup|in a "
        "box|on a pillow}.",
    )
    t.maybe(
        "All night, the {rain|wind} {beat|knocked} {on|against} the roof, but {inside it was "
        "warm|nobody was afraid|they told each other stories}.",
        '{Boom|Crash}! {went|said} the thunder. "{I am not afraid of you|Be quiet}{,*3|!*2}" '
        "<said_pal>, {and|but} {hid under the table|crept closer to [hero]|held [hero]'s hand}.",
        p=0.7,
    )
    t.paragraph()
    t.say(
        "{In the morning|The next morning|At sunrise}, the {sun was shining|sky was blue|storm "
        "was over}, and {a rainbow stood over the [mark]|the air smelled fresh|the birds sang "
        "again}.",
        "When {morning|the sun} came, the storm was over. A {great|bright|<nice>} rainbow stood over the [mark].",
    )
    t.say(
        "{Together they|So they|Then they all|That day, they} {built|made} a new {house|home} "
        "for the [wild], {with|from} {sticks|leaves|a flower pot|an old boot|moss and straw}{, "
        "and [hero] painted the door <colour>|, and it was stronger than the old one|}.",
        '"Let us build you a new {home|house}," said {[hero]|[pal]}. They {used|took} {sticks '
        "and leaves|moss and straw|an old teapot|a flower pot}, and {by noon|by dinner|soon} it "
        "was {done|ready|finished}.",
    )
    t.say(
        '"{Thank you|Oh, thank you}," {said*4|answered|replied|explained} the [wild]. "{I will '
        'never forget this|You are the kindest [kind] by the [mark]|Come and visit me}{.*3|!*2}"',
        "The [wild] {danced|jumped|spun around} with joy and {kissed|thanked|hugged} them both.",
    )
    t.paragraph()
    close_story(
        t,
        "And when the wind blew, the [wild] {was never cold again|slept warm and dry}.",
        "After {every storm|the rain}, {the sun comes out|there is a rainbow}.",
        "A {warm|small} home {has room for|can hold} {one more|many friends}.",
    )
