"""How a story begins and ends: the hero, the home, the friend; the closing lines."""

from __future__ import annotations

from minillm.data.stories.teller import Teller

# CHILD becomes "girl" or "boy" before a template is told: it names the tables to draw from.
_WHO = "a <trait:trait> <CHILD_kind:kind> {named|called} <CHILD:hero>"
_HOME = "a <home_size:home_size> <home:home> {by|near|not far from|close to} the <mark:mark>"
_CLASSIC_OPENING = (
    "{Once upon a time*9|Long ago*2|Once|Not so long ago}, "
    f"there {{was {_WHO}{{ who lived in|. [He] lived in}}*2|lived {_WHO} in}} {_HOME}."
)
_OTHER_OPENINGS = (
    f"There {{was|lived}} once {_WHO}{{, and [his] home was|. [His] home was}} {_HOME}.",
    f"In {_HOME}, there {{was|lived}} {_WHO}.",
    f"In {_HOME} {{lived|there once lived}} {_WHO}.",
    f"<CHILD:hero> was a <trait:trait> <CHILD_kind:kind> {{who lived in|from}} {_HOME}.",
    f"Far{{ away|, far away}}, in {_HOME}, {{there was|lived}} {_WHO}.",
    f"{{This is|Here is}} the story of {_WHO}{{, who lived in|. [He] lived in}} {_HOME}.",
)
_LIKINGS = (
    "[He] {loved|liked} <hobby> and <hobby>{| more than anything| all day long| very much}.",
    "{Most of all|More than anything}, [he] {loved|liked|enjoyed} <hobby:hobby>.",
    "{Everybody|Everyone|All the neighbours} {knew|liked} [him], because [he] was always "
    "{ready to help|smiling|polite|<hobby:hobby>|full of ideas}.",
    "[He] {always wore|never went out without|liked to wear} a <colour> <wear>{| and a <colour> <wear>}"
    "{*3| from [his] <family>}.",
    "[He] had {soft brown|big green|bright blue|dark|kind} eyes and a {warm|lovely|big|cheeky} smile.",
)
_SOMEBODY = "a <size:pal_size> <animal:pal_kind> {named|called}"
# The friend's pronoun is always told here; else the same text could mean a girl or a boy.
_PAL = (
    "<CHILD:pal>{, and [pal_he] lived {next door|at the <place>}"
    "|, and [pal_he] {always |}wore a <colour> <wear>"
    "|. [Pal_he] {liked|loved} <hobby>|, who loved [pal_his] <colour> <wear>}."
)
_FRIENDS = (
    "[His] {best|dearest|closest} friend was {a <size:pal_size> <animal:pal_kind>"
    f"|the <neighbour>'s {{clever|little|funny}} <animal:pal_kind>}} {{named|called}} {_PAL}",
    f"[He] had a {{good|dear|true|best}} friend, {_SOMEBODY} {_PAL}",
    f"Every {{day|morning|afternoon}}, [he] played with {_SOMEBODY} {_PAL}",
    f"{{Always|Often}} at [his] side was {_SOMEBODY} {_PAL}",
)


def open_story(t: Teller) -> None:
    """Introduce the hero, the home and the friend.

    Remembered from here on: `[hero]`, `[he]`, `[him]`, `[his]`, `[kind]`, `[trait]`; `[home]`, `[mark]`;
    `[pal]`, `[pal_he]`, `[pal_him]`, `[pal_his]`, `[pal_kind]`.
    """
    child = t.cast("hero")
    if t.chance(0.55):
        t.say(_CLASSIC_OPENING.replace("CHILD", child))
    else:
        t.say(*(opening.replace("CHILD", child) for opening in _OTHER_OPENINGS))
    t.maybe(*_LIKINGS, p=0.7)
    pal = t.cast("pal")
    t.say(*(friend.replace("CHILD", pal) for friend in _FRIENDS))


def close_story(t: Teller, *morals: str) -> None:
    """End the story, perhaps with one of the plot's own morals."""
    t.maybe(
        "{They|All of them|The two friends} {had|ate} <food> and <food>{*2|, and they drank <drink>}.",
        "{There was|They had} a <nice> {dinner|party|picnic} with <food>, <food> and <drink>.",
        p=0.5,
    )
    t.say(
        "{From that day on|After that|Ever since that day|From then on}, [hero] and [pal] "
        "{were|stayed} {the best of friends|closer than ever|best friends|happy together}.",
        "That {night|evening}, [hero] {fell asleep with a smile|slept very well|had sweet "
        "dreams|told [his] <family> {everything|all about it}}.",
        "And {everyone|everybody} in the [home] was <very> <happy>.",
        "{What a|It had been a} <nice> day{!| it was!| for the [trait] [kind]!}",
        "And {so|that is how} they all lived {happily ever after|happily by the [mark]}.",
        "[Hero] and [pal] {laughed|danced|sang|talked} {until the stars came out|until "
        "bedtime|all the way home|for a long, long time}.",
    )
    if morals:
        t.maybe(*morals, p=0.5)
    t.maybe("The end.", p=0.25)
