"""Plots of the heart: a fear, a wish, a basket shared."""

from __future__ import annotations

from minillm.data.stories.opening import close_story
from minillm.data.stories.teller import Teller


def fear(t: Teller) -> None:
    """The hero is afraid of something, until the pal needs help right there."""
    t.say(
        "{But|Only} one thing was {hard|wrong}: <hero> was {afraid|scared} of <fear:fear>.",
        "But <hero> had a secret: [he] was {afraid|scared} of <fear:fear>.",
    )
    t.say(
        "When {the others|the other children} {laughed|called [him]}, [he] {hid <under>|ran home|said nothing}.",
        "[He] had tried {to be brave|everything|to be big and strong}, but [his] knees always {shook|trembled}.",
    )
    t.paragraph()
    t.say(
        "<when>, [hero] and [pal] {played|were playing} {near|at} the <old><place:place>. "
        "{Suddenly|All at once}, <pal> {was gone|had disappeared|was nowhere to be seen}.",
        "<when>, <pal> {went|had gone} to the <old><place:place> to {pick <fruit>|find "
        "<flower>|look for a <little><wild>} and did not come {back|home}.",
    )
    t.say(
        '"[Pal]! {Where are you|Can you hear me}?" {called|cried|shouted} <hero>.',
        "<Hero> {waited and waited|called and called}. {No answer came|Nothing moved|It grew late}.",
    )
    t.say(
        'Then [he] heard {a small voice|somebody crying|a little cry}: "{Help|Help me}! {My '
        'foot is stuck|I am caught|I am stuck} in {the mud|a hole|the fence|the roots of a tree}!"',
        'Far away, a {thin|little} voice {called|cried}, "{I am over here|I am stuck|I cannot find the way}!"',
    )
    t.paragraph()
    t.say(
        "{But|And} between them was {what [he] feared most|the thing [he] feared most}: [fear].",
        "<Hero> {thought|had to think} of [fear], and {[his] heart beat fast|[his] knees began "
        "to shake|[he] grew cold}.",
    )
    t.say(
        '"{I am afraid|I am scared}," [he] {whispered|said}, "but {my friend needs me|[pal] '
        'needs me|I will go anyway}{.*3|!*2}"',
        "<He> {took a deep breath|counted to three|closed [his] eyes for a moment} and {thought "
        "of [pal]|began to sing|held on to [his] <colour> <treasure>}.",
    )
    t.say(
        "{Step by step|Slowly|Bit by bit}, [he] <went> on{, and {nothing bad happened|it was "
        "not so bad|every step was easier}|}.",
        "One step, two steps, three steps. {It was not so bad|Nothing bad happened|[His] heart grew calm}.",
    )
    t.paragraph()
    t.say(
        "And there was <pal>! [Hero] {pulled|helped} [pal_him] {out|up|free} {with both "
        "hands|with a branch|with a rope}.",
        "{Soon|At last}, [he] {found|discovered|saw} <pal> {beside the path|under a bush|behind "
        "a rock} and {took [pal_his] hand|pulled [pal_him] out|gave [pal_him] a big hug}.",
    )
    t.say(
        '"{You came|You found me}!" <cried_pal>. "But {what about|are you not afraid of} [fear]?"',
        '"{You are so brave|How brave you are}{,*3|!*2}" <said_pal>. "Were you {afraid|scared} of [fear]?"',
    )
    t.say(
        '"{A little|Just a little|I was}{,*3|!*2}" <said_hero>, "but {I was more afraid for '
        'you|friends are more important|now it seems quite small}{.*3|!*2}"',
        '<Hero> {laughed|smiled}. "{I quite forgot|Not any more|I was too busy}," [he] {said|answered}.',
    )
    t.paragraph()
    close_story(
        t,
        "Being brave {means|is} {to be afraid and still go on|to go on with shaking knees}.",
        "And {little by little|after a while}, <hero> even {began to like|made friends with} [fear].",
        "[Hero] was {never afraid of [fear] again|not afraid of [fear] any more}.",
    )


def wish(t: Teller) -> None:
    """A wish is made in the first scene, and it comes true in the last."""
    t.say(
        "[Hero] had {one|only one|a big|a secret} wish: [he] wanted to <wish:wish>.",
        "{Every night|Each evening}, [hero] {dreamed|thought} of one thing: [he] wanted to <wish:wish>.",
    )
    t.say(
        '"{You are too small|Maybe next year|That is not so easy}," {said|answered} [his] <family:doubter>.',
        "[His] <family:doubter> {only laughed|said that it was not possible}.",
    )
    t.paragraph()
    t.say(
        "<when>, <hero> {found|saw} {a coin|a button|a feather|a <colour> stone} {at|near} the "
        "<old><place>. [He] {held it tight|closed [his] eyes} and {made [his] wish|wished with "
        "all [his] heart}.",
        "<when>, <hero> asked the old <wise:helper> at the <old><place:wise_place>{ for help|}. "
        '"{Be kind|Be patient|Help others}, and {your wish will come true|wait and see}," '
        "{said*4|answered|replied|explained} the [helper].",
        "<when>, <hero> {threw|dropped} {a coin|a <colour> button|a <colour> stone} into the "
        "well and {made [his] wish|closed [his] eyes|wished with all [his] heart}.",
    )
    t.say(
        "<He> {waited|hoped} all {day|day long}, but nothing happened.",
        "Nothing happened {that day|at first}, and {nothing happened the next day|the next day was the same}.",
        "Then [he] {went home and waited|sat down and waited}.",
    )
    t.paragraph()
    t.say(
        "{On the way home|The next morning|After lunch}, [he] met a <little><wild:wild> that "
        "{had hurt its leg|had lost its way|was very hungry|could not find its home}.",
        "{Then|Soon}, by the [mark], [hero] and [pal] {saw|met|found} a <little><wild:wild> "
        "that {was stuck in the mud|was very hungry|had lost its way}.",
    )
    t.say(
        '"{Poor thing|You poor little [wild]}{,*3|!*2}" <said_hero>, and [he] {helped '
        "it|carried it home|shared [his] <food> with it|stayed with it all day}.",
        "<Hero> {stopped|knelt down} and {helped it|gave it some <food>|carried it in [his] "
        "hat}{, and [pal] sang to it|}.",
    )
    t.say(
        "{Next|After that}, the <good><neighbour:neighbour> {needed|asked for} help with {a "
        "heavy bag|the <fruit>|a broken wheel|a lost goat}. [Hero] {helped|came} {gladly|at "
        "once|with a smile}.",
        "[He] also helped the <good><neighbour:neighbour> {carry water|pick <fruit>|paint a "
        "fence <colour>|find a lost hen}.",
    )
    t.maybe(
        "In the evening, [he] was {tired but <happy>|<happy> and hungry}.",
        "[He] had almost forgotten [his] wish.",
        '"{You are always helping|What a kind [kind] you are}{,*3|!*2}" <said_pal>.',
    )
    t.paragraph()
    t.say(
        "{The next day|A week later|One fine day}, {there was a knock|somebody knocked} at the "
        "door. It was the [neighbour]{, and the [wild] was there too|}.",
        "{The next day|A week later|On [his] birthday}, the [neighbour] {came|called} and {smiled|laughed|waved}.",
    )
    t.say(
        '"You {have helped|were kind to} us, and now {it is our turn|we will help you}," '
        '{said*4|answered|replied|explained} the [neighbour]. "{Come with me|Get your hat|Wake '
        'up, [hero]}, for today you will [wish]!"',
        '"{I have a surprise|We have a surprise}," {said*4|answered|replied|explained} the '
        '[neighbour]. "{Today|This very day}, you will [wish]!"',
    )
    t.say(
        "{And so it was|It was true}! {[His] wish had come true|It was even better than [his] "
        "dreams}{, and [pal] came along|}.",
        "<Hero> {jumped|shouted|danced} for joy. {[Pal] came along|[Pal] was there too}, {and "
        "it was <nice>|and they laughed and laughed}.",
    )
    t.paragraph()
    close_story(
        t,
        "{Kindness|A kind heart} {can make|makes} wishes come true.",
        "And what did <hero> wish for next? {Nobody knows|That is another story|That is a secret}.",
    )


def sharing(t: Teller) -> None:
    """A full basket grows empty on the way, and comes back fuller than before."""
    t.paragraph()
    t.say(
        "<when>, [hero]'s <family:giver> {gave [him]|packed} a {big|full|<colour>} basket of "
        '<fruit:fruit>. "{Take it to|Bring it to} the <good><neighbour:neighbour> {at|by} the '
        '<old><place:place>," said [his] [giver].',
        "<when>, <hero> {picked|had} a {big|full|<colour>} basket of <fruit:fruit> for the "
        "<good><neighbour:giver>, who lived {by|near} the <old><place:place>.",
    )
    t.say(
        "<Hero> and <pal> <went>{*3| <pace>*2} {down the road|along the path|through the "
        "fields}{, singing all the way|, and the basket was heavy|}.",
        '"{I will come with you|Let me help you carry it}{,*3|!*2}" <said_pal>, and {off they went|they set out}.',
    )
    t.paragraph()
    t.say(
        '{Soon|First}, they met a <animal:first>. "{I am so hungry|I have had no '
        'breakfast|Those [fruit] smell good}," {said|sighed} the [first].',
        "{By the road|Under a tree} sat a <size> <animal:first>{, and its tummy rumbled|}. "
        '"{May I have some [fruit]|Could I have a few [fruit]}?" it asked{*3| <softly>*2}.',
    )
    t.say(
        '"{Of course|Here you are|Please, take some}{,*3|!*2}" <said_hero>, and the [first] '
        "{ate|took} {one|two|three} {and was happy|with a smile|and said thank you}.",
        "<Hero> {gave|handed} it {some|two|three} and {smiled|laughed|patted its head}.",
    )
    t.say(
        "{Next|Then}, they met a <wise:second> {with three hungry babies|who had an empty "
        "kitchen|who looked thin and tired}. {[Hero] shared again|Again, [hero] shared}.",
        "A little later, a <wise:second> {came along|stood in the road}. It was "
        "{hungry|thirsty} too, {and [hero] shared again|so [hero] opened the basket again}.",
    )
    t.say(
        '{At the [mark]|At last}, the basket was {empty|almost empty}. "{Oh dear|Oh no}, {what '
        'shall we do|what now|we have given it all away}!" <sad_pal>.',
        "Now {only one was left|the basket was empty|there was nothing left}. [Hero] {felt|was} "
        '<very> <sad>. "{Have I given too much away|What can we do now}?" [he] {sighed|said}.',
    )
    t.paragraph()
    t.say(
        "{Just then|At that moment}, the [first] came {back|running}. It {brought|carried} {a "
        "jar of honey|a bag of nuts|a loaf of bread|some <flower>}.",
        '"{Wait|Stop}!" called {a voice|somebody}. It was the [first], with {a jar of honey|a '
        "bag of nuts|a loaf of bread|a pot of jam}!",
    )
    t.say(
        "{Behind it came|After it came} the [second] with {<food>|some <flower>|a cake} {and a "
        "big smile|for everyone|on a plate}.",
        "The [second] {came too|was there too} and {put <flower> in the basket|filled the "
        "basket with <food>|brought a <flavour> <treat>}.",
    )
    t.say(
        '"You {shared with us|were kind to us}," {they said|said the [first]}, "and {now we '
        'share with you|we want to say thank you|now it is our turn}{.*3|!*2}"',
        "{Soon|In no time}, the basket was {full again|fuller than before|so full that it took two to carry it}.",
    )
    t.maybe(
        "<Hero> {could hardly believe it|had no words|was so <happy> that [he] danced}.",
        "<They> {sat down in the grass|spread a <colour> blanket} and had a picnic.",
    )
    t.paragraph()
    close_story(
        t,
        "{Who shares|The one who shares} {will never be hungry|always has enough}.",
        "A thing {shared|that is shared} {is twice as sweet|makes two people happy}.",
    )
