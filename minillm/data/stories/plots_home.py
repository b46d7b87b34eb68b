"""Plots around the house: something lost, something broken."""

from __future__ import annotations

from minillm.data.stories.opening import close_story
from minillm.data.stories.teller import Teller


def lost_thing(t: Teller) -> None:
    """A treasure is lost, looked for in two or three places, and found."""
    t.say(
        "[Hero] had a <colour:colour> <treasure:thing>{| from [his] <family:giver>| with a "
        "<colour> {star|stripe|spot|heart} on it}, and [he] {took it everywhere|loved it very "
        "much|never went out without it|kept it under [his] pillow}.",
        "For [his] birthday, [he] had got a <colour:colour> <treasure:thing>{| from [his] "
        "<family:giver>}, and [he] {took it everywhere|loved it dearly|was <very> proud of it}.",
    )
    t.paragraph()
    t.say(
        "<when>, the [colour] [thing] was {gone|nowhere to be seen|missing|not in its place}.",
        "<when>, <hero> {could not find|looked for} the [colour] [thing]{, and it was gone|. It "
        "was gone|. It was not there}.",
        "But <weather> mornings can bring bad luck. {Suddenly|All at once}, the [colour] [thing] was {gone|lost}.",
    )
    t.say(
        '"Oh {no|dear}! Where is my [thing]?" <sad_hero>.',
        '"I have lost my [thing]!" <sad_hero>.',
        "[Hero] {felt|was} <very> <sad>{ and began to cry|, and a tear ran down [his] cheek|}.",
    )
    t.say(
        '"{Don\'t worry|Don\'t cry|Cheer up|Never mind}{,*3|!*2}" <said_pal>. "{We will find it|I '
        'will help you|Let us look for it together|Two can look better than one}{.*3|!*2}"',
        "<Pal> {heard this|saw this|came at once} and {wanted|promised|was ready} to help.",
    )
    t.paragraph()
    t.say(
        "{First|At first|To begin with}, they <looked> <under>, but {there was only|they found "
        "only|all they found was} {a <colour> sock|an old shoe|a lot of dust|a sleeping cat|a "
        "spoon|a piece of <food>}.",
        "<They> <looked> <under> and <under>. {Nothing|No [thing] there|It was not there}{!|.}",
    )
    t.say(
        "{Then|Next,|After that,|So} they <went>{*3| <pace>*2} to the <old><place:place> and "
        "asked the <good><neighbour:neighbour>.",
        "Next, they asked the <good><neighbour:neighbour> at the <old><place:place>.",
    )
    t.say(
        '"{I am sorry|Sorry}," {said*4|answered|replied|explained} the [neighbour]{*3| '
        '<softly>*2}, "{I have not seen it|I have seen no [thing] today|but I will keep my eyes '
        'open}{.*3|!*2}"',
        '"A [colour] [thing]?" {asked|said} the [neighbour]. "{No|I am afraid not}, but '
        '{try|look} {near|by} the [mark]{.*3|!*2}"',
    )
    t.maybe(
        "<Hero> {wanted|was ready} to give up, but <pal> {took [his] hand|would not let [him]|only smiled}.",
        "They were {tired|hungry} now, and it was getting {late|dark|cold}.",
        "A <wild> {came|went} past and seemed to {laugh at|look at} them.",
    )
    t.paragraph()
    t.say(
        "{At last|Finally|In the end|After a while}, they {came to|reached|got to} the [mark]. "
        "There, <spot>, something [colour] was {shining|hiding|peeping out|waiting}.",
        "Near the [mark], <pal> {stopped|stood still|jumped up}. Something [colour] {lay|was lying} <spot>.",
        "{On the way home|On their way back|Later that day}, by the [mark], {[hero]|[pal]} "
        "{saw|noticed|spotted} something [colour] <spot>.",
    )
    t.say(
        '"{My [thing]|There it is|Here it is|I see it}!" <cried_hero>.',
        "It was the [thing]{!| that [hero] had lost!}",
    )
    t.say(
        "<He> {hugged|thanked} <pal> and {held the [thing] tight|danced with joy|laughed out "
        "loud|could not stop smiling}.",
        '"{Thank you|Thank you so much}, [pal]," [he] said. "{You are a true friend|I could not '
        'have found it without you|Now I will take better care of it}{.*3|!*2}"',
    )
    t.paragraph()
    close_story(
        t,
        "And [he] never {lost|forgot} the [colour] [thing] again.",
        "{What is lost can be found|Lost things are easier to find} {with a friend|when a friend helps you}.",
        "The [thing] {lay|slept} {safe|safely} under [his] pillow.",
    )


def broken_thing(t: Teller) -> None:
    """An old thing breaks; two ways to mend it fail, the third succeeds."""
    t.say(
        "[Hero]'s <family:giver> had {an old|a beautiful old|a funny old} <colour:colour> "
        "<toy:toy>{ that could {sing|play a song|dance}| that stood by the window|}.",
        "{At home|Back home|In the kitchen} there was {an old|a lovely old} <colour:colour> "
        "<toy:toy>{| on the shelf}, and it belonged to [his] <family:giver>.",
    )
    t.paragraph()
    t.say(
        "<when>, <hero> {bumped into|played with|tripped over|picked up} the [toy], and "
        "{crash|bang|crack}! {It broke in two|A piece fell off|It stopped|It would not move any "
        "more}.",
        "<when>, the [toy] fell {to the floor|off the table|down the stairs}. "
        "{Crash|Bang|Crack}! {It was broken|A wheel came off|It made no sound any more}.",
    )
    t.say(
        '"Oh {no|dear}! {What will my [giver] say|What have I done|What shall I do now}?" <sad_hero>.',
        "[Hero] felt <very> <sad>, because [his] [giver] loved the [toy] {so much|very much|more than anything}.",
    )
    t.say(
        '"{We can mend it|Let us mend it|I will help you mend it}{,*3|!*2}" <said_pal>. "{We '
        'only need some tools|It is not so hard|I have an idea}{.*3|!*2}"',
        "But <pal> {had an idea|knew what to do|was good at mending things}.",
    )
    t.paragraph()
    t.say(
        "{First|At first|To begin with}, they {tried|used} {string|tape|a piece of rope|a "
        "<colour> ribbon}, but {it was too short|it was too weak|the knot came loose|it did not "
        "hold}.",
        "{First|At first|To begin with}, they tied it with {string|a ribbon|grass}, but {it "
        "broke|the knot came loose|it fell off} {again|once more}.",
    )
    t.say(
        "{Then|Next,|After that,|So} they {tried|used} {glue|honey|mud|jam|sticky dough}, but "
        "{it was too wet|it made a big mess|their fingers stuck together|a <little><wild> came "
        "and ate it}.",
        "Next came the {glue|paste|paint}. {Soon|In the end} everything was sticky, {only not "
        "the [toy]|even [pal]'s nose|even the ceiling}.",
    )
    t.maybe(
        '"{It is no use|It will never work}{,*3|!*2}" <sad_hero>. "{Wait|Not so fast}{,*3|!*2}" '
        '<sad_pal>. "{We can ask for help|Let us try one more time}{.*3|!*2}"',
        "<They> {looked at each other|looked very silly} and {had to laugh|began to giggle}.",
    )
    t.say(
        "So they took the [toy] to the <good><neighbour:neighbour> {at|near} the <old><place:place>.",
        "{At last|Finally|In the end|After a while}, they <went>{*3| <pace>*2} to the "
        "<good><neighbour:neighbour>, who lived {by the <old><place:place>|in a <colour> house}.",
    )
    t.say(
        'The [neighbour] {smiled|nodded}. "{A tiny screw is missing|It needs a new spring|It '
        'only wants a little oil}," {said the [neighbour]|came the answer}. "{Watch|Look} '
        '{closely|carefully}, and {you can do it yourselves|do as I do}{.*3|!*2}"',
        '"{I can show you how|Nothing is easier}," {said*4|answered|replied|explained} the '
        "[neighbour]. {A little hammer|A tiny screw|A drop of oil|A new spring} was all {they "
        "needed|it took}.",
    )
    t.paragraph()
    t.say(
        "{Click|Tick|Tap, tap}! The [colour] [toy] was {as good as new|whole again|better than before}.",
        "{Soon|After an hour|Before dinner}, the [toy] was {as good as new|mended|whole again}.",
    )
    t.say(
        "<Hero> {took|carried} it home and told [his] [giver] the {truth|whole story}.",
        "{At home|Back home|In the kitchen}, <hero> {told the truth|told [his] [giver] "
        "everything|said that [he] was sorry}.",
    )
    t.say(
        '"{You broke it, but you mended it|I am not angry}," said [his] [giver]. "{I am proud '
        'of you|That was honest|Thank you for telling me|Come, let us have some <food>}{.*3|!*2}"',
        "[His] [giver] {was not angry at all|only smiled|gave [him] a big hug} and {made "
        '<drink> for everyone|gave them both some <food>|said, "Well done!"}.',
    )
    t.paragraph()
    close_story(
        t,
        "{Almost everything|What is broken} can be mended {with patience|if you try again|with a little help}.",
        "It is {always|much} better to tell the truth.",
        "And the [toy] {worked|lasted} for many, many years.",
    )
