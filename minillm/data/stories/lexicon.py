"""The tables of words that templates draw from, commonest first (or with explicit weights, `word*3`).

Words that may follow "a" begin with a consonant, so that no template has to choose between "a" and "an".
"""

from __future__ import annotations

_ANIMALS = "rabbit|mouse|bear|fox|duck|squirrel|hedgehog|frog|kitten|puppy|goose|turtle"

TABLES: dict[str, str] = {
    # Who
    "girl_kind": "girl*20|rabbit*3|mouse*2|bear*2|fox*2|duck|squirrel|hedgehog|kitten",
    "boy_kind": "boy*20|rabbit*3|mouse*2|bear*2|fox*2|duck|squirrel|hedgehog|puppy",
    "animal": _ANIMALS,
    "trait": "little|kind|clever|curious|cheerful|gentle|young|shy|merry|funny|quiet|lively|friendly|playful",
    "size": "small|little|tiny|big|round|young|fluffy|sleepy|funny|cheeky",
    "family": "mother|father|grandmother|grandfather|sister|brother|aunt|uncle|cousin",
    "neighbour": ("baker|teacher|farmer|gardener|postman|miller|painter|fisherman|shoemaker|tailor|carpenter|cook"),
    "hobby": (
        "singing|painting|reading|dancing|climbing trees|drawing|picking flowers|jumping in puddles"
        "|telling jokes|making paper hats|watching clouds|skipping rope|telling stories"
        "|playing hide and seek"
    ),
    "wild": "butterfly|robin|snail|ladybug|dragonfly|bee|cricket|sparrow|spider|caterpillar|squirrel|frog",
    "wise": "toad|tortoise|raven|heron|goat|donkey|badger",
    # Where
    "home": "village*5|town*3|valley|street",
    "home_size": "small|quiet|little|pretty|sleepy|tiny|sunny|green|cosy|peaceful",
    "mark": "forest|river|sea|lake|hills|mountains|meadow|woods|windmill|castle",
    "place": ("pond|garden|market|bridge|barn|school|bakery|well|orchard|tower|playground|mill|library|station"),
    "under": (
        "under the bed|behind the door|under the table|behind the sofa|in the cupboard"
        "|behind the shelf|in the kitchen|under the stairs|in the attic|in the drawer"
        "|behind the curtain|inside a box"
    ),
    "spot": (
        "under a bush|in the long grass|behind a rock|under a pile of leaves|in a hollow tree"
        "|between two stones|beside the path|on top of a fence|in a bird's nest|under a wooden bench"
        "|next to a mushroom|in an empty bucket"
    ),
    # Things
    "colour": "red|blue|green|yellow|white|pink|purple|golden|silver|brown|black|grey",
    "treasure": "ball|kite|hat|scarf|button|key|ribbon|drum|boat|book|bell|ring|spoon|whistle|flute",
    "toy": "robot|train|music box|clock|rocking horse|puppet|doll|wagon|lantern",
    "food": "cake|bread|soup|pie|cookies|pancakes|cheese|jam|honey|porridge|nuts|strawberries",
    "fruit": "apples|berries|pears|plums|cherries|carrots|nuts|peaches|grapes|pumpkins",
    "treat": "cake|pie|pudding|tart|loaf|pancake|muffin|biscuit",
    "flavour": "peach|honey|lemon|chocolate|cherry|carrot|cinnamon|strawberry|pumpkin|banana",
    "flower": "roses|daisies|tulips|lilies|sunflowers|violets|poppies|bluebells|snowdrops",
    "drink": "warm milk|hot chocolate|sweet tea|apple juice|cold water|lemonade",
    # How
    "happy": "happy|glad|proud|pleased|delighted|joyful|excited|cheerful",
    "sad": "sad|worried|upset|unhappy|gloomy|disappointed",
    "softly": "softly|quietly|gently|kindly|slowly|shyly|calmly|warmly",
    "sadly": "sadly|quietly|softly|in a small voice|with a tear in one eye",
    "loudly": "happily|loudly|proudly|brightly|cheerfully|merrily|eagerly|joyfully",
    "nice": "nice|lovely|wonderful|beautiful|splendid|fine|marvellous|special|perfect",
    "weather": "sunny|warm|bright|windy|cold|cloudy|misty|clear|frosty|golden|calm",
    "went": "walked|ran|hurried|skipped|wandered|marched|hopped|tiptoed|rushed|strolled",
    "pace": "hand in hand|together|bravely|side by side|without a word|arm in arm",
    "looked": "looked|searched|peeked|peered|hunted|checked",
    "very": "very|so|really|quite|terribly",
    "fear": "the dark|thunder|deep water|high places|spiders|loud noises|big dogs|the old well",
    "wear": "hat|scarf|coat|cap|jacket|jumper|bow|backpack|belt|raincoat",
    "wish": (
        "see the sea|fly in a balloon|ride on a train|have a little puppy|sleep in a tree house"
        "|learn to swim|see real snow|ride a white horse|sail on a ship|learn to read"
        "|climb a mountain"
    ),
    "monster": "dragon*5|giant*3|robot*3|bear|troll*2|monster",
}

# Longer phrases, written `<name>` like a table, but with choices and remembered words of their own.
PHRASES: dict[str, str] = {
    "when": (
        "{One day*5|One <weather> day*2|One {*3|<weather> *4}{morning*3|afternoon*2|evening*2"
        "|Sunday}*7|Early one {*2|<weather> }morning*2|On a <weather> {Sunday|Monday|Saturday"
        "|Friday}*2|{In the spring|In the summer|One autumn day|Just before winter}}"
    ),
    "hero": "{[hero]*8|the [kind]*2|little [hero]*2|the [trait] [kind]*2}",
    "Hero": "{[hero]*8|Little [hero]*2|The [trait] [kind]*2|Then [hero]*2|So [hero]|Now [hero]}",
    "pal": "{[pal]*8|the [pal_kind]*2|[his] friend*2|[his] friend [pal]}",
    "Pal": "{[pal]*8|The [pal_kind]*2|[His] friend*2|Then [pal]*2|So [pal]}",
    "He": "{[He]*8|[Hero]*2|Then [he]*3|So [he]|And [he]}",
    "They": "{They*8|[Hero] and [pal]*3|The two friends*3|Together, they*2|The [kind] and the [pal_kind]*2}",
    "said_hero": "{said*6|whispered*2|smiled*2|answered} <hero>{*4| <softly>*3| in a soft voice}",
    "said_pal": "{said*6|whispered*2|smiled*2|answered} <pal>{*4| <softly>*3| in a soft voice}",
    "cried_hero": "{cried*4|called*3|shouted*2|said*3|laughed} <hero>{*4| <loudly>*4}",
    "cried_pal": "{cried*4|called*3|shouted*2|said*3|laughed} <pal>{*4| <loudly>*4}",
    "sad_hero": "{cried*3|said*4|sighed*2|sobbed|whispered} <hero>{*4| <sadly>*3}",
    "sad_pal": "{cried*3|said*4|sighed*2|sobbed|whispered} <pal>{*4| <sadly>*3}",
    "asked_pal": "{asked*6|said*3|whispered*2} <pal>{*4| <softly>*3}",
    "old": "{*5|old *2|little *2|big |new |pretty }",
    "good": "{*5|old *2|kind *2|good |friendly |clever }",
    "little": "{*4|little *2|small |fat |<colour> |young }",
}
