"""Plots of the wide world: a lost animal, a trip in a boat."""

from __future__ import annotations

from minillm.data.stories.opening import close_story
from minillm.data.stories.teller import Teller


def animal_friend(t: Teller) -> None:
    """A little animal is found, cared for, brought home, and comes back."""
    t.paragraph()
    t.say(
        "<when>, <hero> {found|saw|met} a {tiny|small|baby|lost} <animal:baby> <spot>.",
        "<when>, <hero> heard {a little cry|a soft sound|somebody crying} {near|by|beside|close "
        "to} the <old><place>. It was a {tiny|baby|lost} <animal:baby>.",
    )
    t.say(
        "It {had hurt its foot|was all alone|was cold and hungry|had lost its mother} and "
        "{looked|was} <very> {scared|<sad>}.",
        '"{Who are you|Are you lost|Why are you crying}?" asked <hero>{*3| <softly>*2}. The '
        "[baby] {only shook its head|looked at its feet|cried a little more}.",
    )
    t.say(
        '"{Do not be afraid|I will help you|We will take care of you}{,*3|!*2}" <said_hero>. '
        "[He] {wrapped it in|gave it} [his] <colour:colour> {scarf|coat|blanket|jacket}.",
        "<Hero> {picked it up|took it in [his] arms} and {wrapped it in|warmed it with} [his] "
        "<colour:colour> {scarf|coat|jacket|blanket}.",
    )
    t.paragraph()
    t.say(
        "{At home|Back home|In the kitchen}, [he] {gave|brought|handed} it <food:food>, but it "
        "{did not like [food]|did not eat|turned its head away}.",
        "{First|At first|To begin with}, they tried to feed it <food:food>. The [baby] {shook "
        "its head|made a face|sneezed}.",
    )
    t.say(
        "Then <pal> came with {some <fruit>|<drink>|a little honey}, and {it ate "
        "everything|that was just right|it ate until it was round}.",
        '"{Try this|I know what it likes}{,*3|!*2}" <said_pal>, and {brought|gave it} {some '
        "<fruit>|<drink>|a little honey}. {It ate everything|Yum, yum|That was just right}!",
    )
    t.say(
        "<They> {called|named} it <place_name:pet>, because {it was so sweet|that was a pretty "
        "name|it liked the sound}, and it slept {in a shoe box|<under>|on [hero]'s pillow|in a "
        "drawer}.",
        "{Day by day|Every day}, the [baby] grew {stronger|bigger|happier}. It "
        "{danced|slept|played} {on [hero]'s bed|in the garden|with a ball}.",
    )
    t.maybe(
        "It {followed|ran after} <hero> {everywhere|like a shadow}{, even to school|}.",
        "All three {played hide and seek|danced in the kitchen|built a tower of boxes}.",
        p=0.4,
    )
    t.paragraph()
    t.say(
        "{But|Yet} {at night|in the evenings}, it {looked|stared} out to the [mark] and {sighed|was <sad>}.",
        "But one {night|evening}, {somebody called|a voice called} from the [mark], and the "
        "[baby] {lifted its ears|began to cry|ran to the window}.",
    )
    t.say(
        '"{It misses its family|It wants to go home|Its mother is looking for it}{,*3|!*2}" '
        "<said_pal>. {[Hero] nodded|[Hero] knew it was true|[Hero] swallowed hard}.",
        '"{You want to go home|You miss your mother}{,*3|!*2}" <said_hero>. "{Then we will take '
        'you|Then you must go}{.*3|!*2}"',
    )
    t.say(
        "So they {took|carried|brought} it to the [mark], and there was its {mother! It ran to "
        "her and kissed her nose|family! There were kisses and hugs|mother, who cried for joy}.",
        "{Together they|So they|Then they all|That day, they} <went>{*3| <pace>*2} to the "
        "[mark]. A big [baby] {came running|was waiting}: {the mother|it was the mother}!",
    )
    t.say(
        "<Hero> {waved|waved goodbye} {until they were gone|for a long time}, {happy and sad at "
        "once|with a tear in [his] eye}.",
        '"{Goodbye, little one|Goodbye|Come and see us}{,*3|!*2}" <said_hero>, and gave it one last hug.',
    )
    t.paragraph()
    t.say(
        "{The next spring|A few weeks later|One year later}, {there was a knock at the "
        "door|something scratched at the door}. There stood the [baby]{, big and strong,|} with "
        "{a basket of <fruit>|a bunch of <flower>|three little brothers}!",
        "{But in the spring|But a week later|But the next morning}, the [baby] {came back|came "
        "to visit}, and it {brought|carried} {a bunch of <flower>|a basket of <fruit>|some honey}.",
    )
    close_story(
        t,
        "A {true|good} friend always comes back.",
        "If you love {somebody|a friend}, you {can|must} let them go.",
    )


def boat_trip(t: Teller) -> None:
    """A home-made boat, an island, trouble on the water, a clever way home."""
    t.paragraph()
    t.say(
        "<when>, [hero] and [pal] {built|made} a boat from {old boxes|a bathtub|a big "
        "barrel|wood and string}{. They painted it <colour:colour>| and painted it "
        "<colour:colour>} and {called|named} it the {Duck|Star|Shell|Goose|Rose|Moon}.",
        "<when>, [hero]'s <family:giver> gave [him] a {little|small|real} <colour:colour> boat. "
        '"{Be careful|Take [pal] with you|Be home for dinner}," said [his] [giver].',
    )
    t.say(
        '"{Let us sail to the island|Let us find the island|I want to see the island}!" '
        "<cried_hero>. They {took|packed} some <food:food> and a <treasure:tool>.",
        "<They> {took|packed} some <food:food>, a <treasure:tool> and {a warm blanket|a map|two "
        "hats}, and {off they went|they sailed away}.",
    )
    t.paragraph()
    t.say(
        "The water was {blue|calm|bright}, and {fish jumped|birds flew|the sun danced} {around|beside} the boat.",
        '{A soft wind|The wind} pushed them {along|over the waves}. {"I am the captain!" sang '
        "[hero]|[Pal] held the rope|They sang a song about <fruit>}.",
    )
    t.say(
        "On the island, they {found|discovered|saw} {a <colour> shell|a <nice> beach|trees full "
        "of <fruit>|a cave|a family of seals} and {played|stayed} {all morning|until noon|for "
        "hours}.",
        "{Soon|After an hour}, they {came to|reached} the island. It was {full of <flower>|full "
        "of <fruit>|as round as a plate|no bigger than a kitchen}, and they {danced|played|ran} "
        "{in the sand|from end to end}.",
    )
    t.paragraph()
    t.say(
        'But on the way {home|back}, {the wind stopped|a fog came|water came in}. "{Oh no|Oh '
        'dear}! {We are lost|We will never get home|Look at that}!" <sad_pal>.',
        "{But then|But|Then} {the wind stopped|the rope broke|a big wave came|there was a hole "
        "in the boat}, and {they could not go on|the boat turned around and around|they were in "
        "trouble}.",
    )
    t.say(
        "<Hero> {thought|had to think} hard. {Suddenly|After a while}, [he] {remembered|looked at} the [tool].",
        '"{Do not be afraid|Stay calm|Let me think}{,*3|!*2}" <said_hero>. "{We still have|Give '
        'me|I can use} the [tool]!"',
    )
    t.say(
        "<He> {waved|held up|swung} the [tool] {high in the air|above [his] head}, and a "
        "{big|friendly|huge} {whale|seal|dolphin} {saw|noticed|spotted} it and {came|swam over} "
        "{to help|at once}.",
        "With the [tool], [he] {made a loud noise|knocked on the boat|splashed in the water}, "
        "and {soon|a moment later} a {big|friendly|kind} {whale|seal|dolphin} {came|swam over} "
        "to help.",
    )
    t.maybe(
        '"{Good day|Hello}, {little sailors|captain}," it said{*3| <softly>*2}. "{Hold tight|Give me your rope}!"',
        "<They> {gave|brought|handed} it {some|all} of the [food]{, and it smiled|}.",
        p=0.7,
    )
    t.say(
        "It {pulled|pushed} the [colour] boat {back to land|all the way home|safely to the shore}{ before dark|}.",
        "{Splash, splash|Whoosh}! It {pushed|pulled} the [colour] boat {home|to the shore|over "
        "the waves}, faster than the wind.",
    )
    t.say(
        "{Everyone|Everybody|The whole [home]} {stood|waited} {on the shore|at the door} {with "
        "<drink>|with a lamp|with warm blankets}.",
        '{"Home at last|"Home again}!" <cried_pal>, and {kissed the ground|danced on the sand|jumped onto the sand}.',
    )
    t.paragraph()
    close_story(
        t,
        "And the [tool] {got|had} a {place of honour|special place} {in the boat|on the wall}.",
        "{A clever head|A good idea} is {worth more|better} than {a big boat|strong arms}.",
    )
