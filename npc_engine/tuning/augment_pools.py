"""Word pools of the scene augmentation: syllables of names, closed classes, and words that are never names."""

from __future__ import annotations

from typing import NamedTuple


class Culture(NamedTuple):
    """Syllables that go together; `vowel` and `consonant` end a name."""

    starts: tuple[str, ...]
    middles: tuple[str, ...]
    vowel: tuple[str, ...]
    consonant: tuple[str, ...]


def _culture(starts: str, middles: str, vowel: str, consonant: str) -> Culture:
    return Culture(tuple(starts.split()), tuple(middles.split()), tuple(vowel.split()), tuple(consonant.split()))


CULTURES = (
    # West and South Slavic
    _culture(
        "bra do vla mi sta ra zde lu bo ja kve ve dra ne go",
        "di mi ro sla vo ni za le do zi bo",
        "ka na va sha mila sna ca ta",
        "mir rad tek nik dan lav vit bor gost",
    ),
    # Norse
    _culture(
        "tor ei ul gud sig har ketil svei hal ing yr ar ro dag",
        "ge val stei bjo ga le ri mun",
        "na da ga la ra va hilda",
        "var mund fin dor leif vald grim rik brand",
    ),
    # Celtic
    _culture(
        "bri cae gwe mor tal ae fer lle con dai rhi pad cor",
        "le na ri wy de va lo do",
        "na wena ra la da gha",
        "dan wyn gan rin nach deg lan wel ric",
    ),
    # Romance
    _culture(
        "al be ca dul fa gio lo mar pe ro sal val ve ar no",
        "be ri la lo na ti vi re do ce",
        "na ta lia ra sa do no ri lla rio tta",
        "nel dor val rel lin rez mon ran",
    ),
    # Greek
    _culture(
        "the ly ari pho kal eu de xe nik ana zo phi",
        "do mo ni le ra sto ka pho",
        "nia dra kea the tra lia",
        "ron kon mon dor phon lon kan",
    ),
    # Arabic and Persian
    _culture(
        "ha ja fa za na sha ra kha ba da ma sa ru qa",
        "mi ri di ha la ru fi ni zi",
        "ra ya na da sha la reh",
        "dan mar rad shid lil hir zan far qir",
    ),
    # Turkic
    _culture(
        "ay tu ko ba er te or bu sa yil il do ke",
        "ga ma le ri ka gu lu ri",
        "sha la ya ra ca gu",
        "dar gul kan bek men tay ral han mir",
    ),
    # Indic
    _culture(
        "a ra su vi ma ka pra de sha ni cha ja bha",
        "ni ri ma va sha di ra tha la",
        "ya ka la dha ni ti vi",
        "jan dev kar nath rin mit van raj",
    ),
    # West African
    _culture(
        "a kwa o fo ade ny e ba ku chi i bo ta du",
        "ko du be ma fe lo na ya bo",
        "na wa la mi di ba fo ku nwe",
        "min kan don ben tun bal sen",
    ),
    # Bantu and Swahili
    _culture(
        "ka mba the no zi lu nda si wa ku nya ma ta",
        "le ba ndi ko mbe si ngi ra",
        "ndi la so ni ko zi mba nga",
        "lan bel den kan mon zin",
    ),
    # Japanese
    _culture(
        "ha shi ta mo ki na yu ka sa ho mi to ku",
        "ru no shi ka ri mi tsu ke ma",
        "ko mi ta ro ka ra shi to",
        "ken shun rin dan ken jin",
    ),
    # Polynesian
    _culture(
        "a ka ma le ha ta no pa wa ke lo ma",
        "le no hi ka lu ma ru na",
        "lani na ka hu mo loa ri nui",
        "kan lan man tan",
    ),
    # Baltic and Finnic
    _culture(
        "vai jo lai ei ka mar au ra sa tai ve il",
        "mi di ne ri ka lo vi gi ta",
        "ja ta ka na mo nena ri ve",
        "kin mar nen lis rin tar var",
    ),
    # Andean and Nahua
    _culture(
        "a cu i qui tla xo ya pa hua ci ma te",
        "ta ci yo ma lli ca na ri",
        "lla ca ri pa co tli ta",
        "chan can tal yan pal xin",
    ),
    # invented
    _culture(
        "vel tha or ka syl dre no gar ish quo fen wex ul",
        "lu ra ve do si tho ne gri",
        "ra lo the nu va ssa mi",
        "dris thal ven gorn rik vash len dor",
    ),
)

NUMBER_WORDS: dict[int, tuple[str, str]] = {
    2: ("two", "second"),
    3: ("three", "third"),
    4: ("four", "fourth"),
    5: ("five", "fifth"),
    6: ("six", "sixth"),
    7: ("seven", "seventh"),
    8: ("eight", "eighth"),
    9: ("nine", "ninth"),
    10: ("ten", "tenth"),
    11: ("eleven", "eleventh"),
    12: ("twelve", "twelfth"),
    13: ("thirteen", "thirteenth"),
    14: ("fourteen", "fourteenth"),
    15: ("fifteen", "fifteenth"),
    16: ("sixteen", "sixteenth"),
    17: ("seventeen", "seventeenth"),
    18: ("eighteen", "eighteenth"),
    19: ("nineteen", "nineteenth"),
    20: ("twenty", "twentieth"),
    30: ("thirty", "thirtieth"),
    40: ("forty", "fortieth"),
    50: ("fifty", "fiftieth"),
    60: ("sixty", "sixtieth"),
    70: ("seventy", "seventieth"),
    80: ("eighty", "eightieth"),
    90: ("ninety", "ninetieth"),
}
"""Value → cardinal and ordinal."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _group(*entries: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(entry.split()) for entry in entries)


def _plurals(words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((word, word + "s") for word in words.split())


CLASSES: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "colours": (_plurals("red blue green yellow white black brown purple pink grey"),),
    "metals": (_plurals("gold silver copper bronze brass iron steel pewter"),),
    "trees": (
        _plurals("oak elm willow maple cedar poplar alder larch spruce hazel yew juniper sycamore linden rowan"),
    ),
    "animals": (
        _plurals("cow goat pig donkey mule camel"),
        (("fox", "foxes"), ("wolf", "wolves"), *_plurals("otter hare badger squirrel hedgehog weasel rabbit")),
        _plurals("raven crow owl heron pigeon sparrow magpie parrot"),
        _plurals("tiger lion elephant monkey leopard"),
        (("mouse", "mice"), *_plurals("rat frog toad lizard snake spider beetle moth")),
        _group("trout trout", "salmon salmon", "carp carp", "cod cod", "herring herring", "eel eels"),
    ),
    "fruits": (
        (("cherry", "cherries"), *_plurals("apple pear plum quince apricot lemon melon fig mango pomegranate")),
        (("peach", "peaches"),),
        tuple((f"{stem}y", f"{stem}ies") for stem in _words("strawberr raspberr blackberr gooseberr cloudberr")),
    ),
    "seasons": (_plurals("summer winter autumn"),),
}
"""Class → groups of words that may stand for one another, each word with its forms."""

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = _words("january february march april may june july august september october november december")
COMPASS = ("north", "south", "east", "west")
COMPASS_ENDINGS = ("", "ern", "erner", "erners", "ward", "wards", "erly", "bound", "most", "ernmost")

RELATED = {
    "red": "scarlet crimson vermilion ruby reddish redder redden blushing rust",
    "blue": "azure indigo navy bluish cobalt sapphire",
    "green": "emerald greenish olive verdigris jade",
    "yellow": "yellowish amber saffron mustard",
    "white": "pale whitish ivory albino chalk snow",
    "black": "dark blackish ebony soot jet coal",
    "brown": "brownish tan",
    "purple": "violet lilac mauve",
    "pink": "pinkish rosy rose",
    "grey": "gray greyish greying",
    "gold": "gilt gilded gilding aurum golden",
    "silver": "sterling",
    "copper": "verdigris",
    "iron": "rust rusty rusted rusting",
    "steel": "rust rusty rusted rusting",
    "brass": "brassy",
    "oak": "acorn acorns oaken",
    "elm": "elmwood",
    "yew": "yewen",
    "rowan": "rowanberry",
    "hazel": "hazelnut hazelnuts nuts",
    "cow": "bull bulls calf calves ox oxen milk milked moo beef cowshed cowherd cowbell byre heifer udder milking",
    "goat": "kid kids nanny billy goatherd bleat bleated milk milked milking",
    "pig": "sow boar piglet piglets pork bacon ham pigsty sty swine oink",
    "donkey": "ass bray brayed foal",
    "mule": "muleteer bray brayed",
    "camel": "hump humps",
    "fox": "vixen cub cubs foxglove",
    "wolf": "cub cubs howl howled howling werewolf",
    "hare": "leveret rabbits",
    "rabbit": "warren",
    "hedgehog": "spines",
    "owl": "hoot hooted owlet",
    "crow": "cock cockerel rooster crowed crowing",
    "raven": "ravenous caw",
    "pigeon": "dove doves dovecote coo loft",
    "parrot": "squawk",
    "elephant": "trunk tusk tusks ivory mahout",
    "tiger": "tigress stripes",
    "lion": "lioness mane",
    "mouse": "squeak",
    "frog": "tadpole croak",
    "toad": "toadstool",
    "snake": "venom serpent viper",
    "spider": "web webs cobweb",
    "moth": "moths' mothballs",
    "trout": "fish",
    "apple": "cider",
    "pear": "perry",
    "lemon": "lemonade",
    "cherry": "kirsch",
    "plum": "prune prunes",
    "summer": "hot heat",
    "winter": "snow ice frost cold freeze frozen",
    "autumn": "harvest",
}
"""A class's word stays as it is where one of these stands in the scene."""

COLOUR_IDIOM = (
    "hair|haired|beard|bearded|braid|braids|braided|wine|wines|tea|coffee|bread|lie|lies|market|magic|pepper|powder|"
    "sheep|flag|moustache|eyed|skinned|grapes|smith|bear|bears|pudding|sugar|hole|mail|house"
)
"""What makes a colour part of a fixed phrase."""

_COMMON = """
abacus abbess abbey abbot about above abstemious academy accident accountant acre act admin admiral admiralty advent
advocate affair africa african after age ain airag airport airship alas alderman ale all alley almanac almighty
alphabet althing alto ambassador amber ambush amen america american ami amplifier analytics anchor anchorage anchors
and ani animals anklet anna answer ant antechamber anus anvil anvils any apothecary approved april apron arabic arch
archer archive archivist are arena argument ark armenian arr arrival arrivals arrow arrr ash asia ask asking assay
assembly assistant asylum ataman ate attack attendant auction audits august aunt auntie auspicious author autumn aux
avalanche avenue awa away axes aztec baba babes back bacon bad badger bagpipes bags bailer baker bakers bakery bald
balete balloon ballroom balls banana band bandits bands bank banner banners bans bao baobab baptist bar bares bargain
bark barley barn barnacle baron baroness barons barrow bars basement basil basin basque bass bath bathers baths
bathtub bats battery battle bay bays beam bear beard beards bears beat bed beds beer bees bel belgian bell belladonna
bellfounder bellows bells bellwether belly belt bench bend bengali berber berth best beta bets bewildered bible
biddable big bill bin bint bird birds birthday biscuit biscuits bishop bitter black blade blessing blind block bloody
blown blue blues bluff blunt blush board boat boats bog boiler bold bone book books boom booth border bore born
borrowed boss bot both bottling bottom boulevard bowl bowler bows box boxing boy boys bracken brackish brakes bramble
branch branching brand brass brats breakers breakfast breaking breakwater breton brick bride brides bridge bridges
brigade brigadier bright brisk broad broken brook broth brother brothers brush bubbling buck bucket buckets bug bugle
bugs bulgarian bulk bulkhead bull bullet bulls bulrush bund bundle bunk buns buoy burdock bureau burn burns burnt bus
business buss butcher butter button buys cable café cage cairn calico called calls calm camel camp canal cancelled
candle candlemas candles canes canister cannery cannon canopy cans canteen canyon cap cape captain car carat
caravanserai caraway cards careful cares carnival carp carrier cars cart carts case casino cask castle casualty
catalan cathedral cats cauldron causeway cavalry cave caves cay cellars celtic censor central centre century chair
chairman chalice chalk chamber chamberlain chance chancellor chandelier change chanter chapel charity charts chats
chess chew chief child children chili chimney chimneys chin china chinese chins chips chits choir choirmaster cholera
chord chosen christian christmas chrome chuck chunk church chute cinders cinema cinnamon circulating circus cistern
city claim claims clamp clarinet class clause claw claws clear clearing clerk click clinic cloche clock clockwork
closed closes cloud club clumping coach coast coastal cobbler coffee coffin coil col cold colleague colonel colony
combine comedy comet comets comma command commander commissioner committee commodore comms community company
compartment complaint comprehensive comptroller comrade condors confederacy conference consequence considered
consolidated consort constable contessa cookie copper cords cork corner corns corporal corporation corridor corsair
cottonwood cough councillor count counter countess counting country county couple courage courier court courtesy
courtyard cousin cove covid cow cowries coyote crab cracked cradle crane cranes crate crawler credit creed creek
creole crescent crest crimson crisp croatian crooked cross crossing crown crumb cumulus cup cups curate cure curiosity
currently curtsey curve custard customs cut cutler cutoff cuts cutter cycle czech dada daily dainty dam dame damp
danish dares dark darts das date daughter daughters dawn day days deacon dead deadline dealer death debt debts
december deck deeds deep deferred delays delight delivery delta demeanour demon dent department depot deputy derby des
desert desk destiny destroying detective devil dey diamond did die dike diner dinner dinosaur direktor discovery
dismal dispatch diver division diwali doc dock docket docking docks doctor dog dogs dome domes don dona donna door
dora dotes dots double doubt dove dowager down downbeat downhill doña dragon drawer dream dress drift drifters drinker
drip dripping drips driver dropped drought drover drowned drowsy drum drummer drunken dry dryer drying duchess
duchesses duchy duck duke dump dumpling dusk dust dutch dying eagle ear earl early ears earth east easter eastern echo
echoes educated eel egg egyptian eight eighth eighty elbow elbows elder elephant eleven elk elm embassy ember
emperador emperor empire empress empty end engine engineer engineering english ensign envy epiphany equity errs escape
espresso estonian ethiopian eunuch europe european euros euston eve even evening every everyone everything examiner
excellency except exchange excise excuse exhibit exorcists express extra eye faces factory fado faint fair fairway
fall falling falls false family famine fan fang fans fares farm farrier farthing faster fat father fathom fax feast
featherbed february feet fell fence fennel fern ferns ferry festival field fifteenth fifth fig film final finch
fingers finnish fire first fiscal fish fishwife five fizz flag flannel flat flats fleece fleet flemish flood flooded
flotilla flour flower fluff flute fly flying fog fold folded folk fond fools footnote for forbearance ford foreman
forest fork form formation fort forth forty forward found founders foundry fountain four fourteen fourteenth fourth
fowl fox foxglove fragile frame frau freckles free french friday fridays friends frog front frost frozen fruit fuel
full fund fuse gaelic gaffer gall galleon galleries gallery gallows gamemaster gang gannet gantry gap garden gardens
garlic garter gasket gasworks gate gatekeeper gatepost gates gauge gavel geese gem general generator generous gentle
geography german ghat ghost ghosts gilded gilt girls glass glasshouse glue gluttony goat goats goblin god goddess gods
gold golden gone good google goose gorge gospel gossip gourd governor grace grafting grain grand grandad grandeur
grandfather grandmaster grandmother granny grape grass gravel gravy great greek green greenhouse greens grey grievance
grim grinning groans grocery ground grove grub grudge guard guards guild guinea gulch gull gust gut gutter habeas
haddock hail halberdier halberdiers halcyon half halfpenny halfway halibut halide hall hallow halls halo halt halts
hammam hammer hams hand hands hanged hanging hanukkah happy harbour harbourmaster hardware hare hares harmless harmony
harrow harvest has hatchet hatpin hats hatters hausa hawaiian hawk hay hazard hazel head heard hearth heaven heavenly
hebrew heel heifer heights hell helping hen her hereafter heron herons herr herring hides high highest highlander
highness hill hills him hindi his hmm hob hold hole hollow holy home homicide honest honesty honey honeymooners honor
honour hoop hope hopeful horn horse hospital host hot hotel hound hour hours house how hull hum human hummingbird hun
hungarian hungry hurdle hurricanes hush hut ice icelander icelandic igbo ilse imams immortal imperial inca incident
ind independence indian indigo infirmary ingeniero ink inkling inkwell inn innkeeper ins insolent inspection inspector
institute insurance interest internet interval invoice irish iron ironmonger irregular island islands isle isthmus
italian its jack jade jaguar jaguars january japanese jar jars jaw jeep jelly jester jewish jigsaw jock joss judge
july jun junction june jungle junior juniper jupiter justice kabaddi kappa karts keep keeper kegs kelp kettle key keys
khan kid kids kiln kilohertz kilometre kind king kingfisher kings kiosk kiss kit kitchen kitchens kite kites kits knee
kneeling knights knob knot knots knuckle kola kora kumara kuna labour labyrinth lace lacquer lad ladder ladders ladle
lady lake lambs lame lament lamp lamplighter lamplighters land landing landslide lane lanky lantern lanterns lap larch
larder large las last lathering latin laughing laundress laundromat laundry lava law lawn lazy leaf league leak
leaking lean leaning led ledge ledger leek left leg lend lens lent leopard les less lesser lethargy lets letter
letters lettuce level levity levy librarian library licence lids lieutenant lift light lighthouse lightning lily
limping line linen lint lip listener listeners little liver llama loadmaster loaf loam loans lobster local lock locked
lockers locksmith lodge log long loop loose lopsided lord lords loser loss lost lots lotus loud love low lower loyal
lucky ludo lull lullabies lungs mace machine madam madame mademoiselle maestro magister magistrate magnet magpie maid
mail main mainland majesty major malachite mamba man manager manga mango manifest manor many maori map maps mara
marani march marchioness mare mares margin margins margrave margravine marigold mark market marks marmalade marquis
marrow mars marsh marshal martinmas maru marula marzipan mask masked masons mass mast master matches math matins
matron mats max may maya maybe mayor meadow meal measles medicine meek memorial mercury mercy merry mess metronome
mica michaelmas mid middle midnight midsummer midwinter mighty mikes mild mile milk mill min minaret mind mining
minister ministry minnesotan minnow minor minors mint minus mis misery miss misses missing mission mister mistress
misunderstanding mix model modest moist molar mole moles monastery monday mondays money mongol monk monsieur monsoons
monster month moon moonmilk moor mooring moorish moose moot morning morrow mosque moss motel moth mother mothers moths
motorway mount mountain mouth mrs mugwort mulberries mulberry mule mum mumble murder museum musk muslim mutiny mutton
mutual nagging nah nahuatl nakhoda name names nan nana naps narrow narrows nation nations nave navy neck needle
needles neighbour neon nephew ness nest nets nettle never new newt nick night nightjar nil nine ninefold ninth nobody
nocturnal nods noodles noon norman norse north northern norwegian nosebleed not notaries notary nothing notice nought
nova novels november nowhere npc number nun nunnery nurse oak oar oarsmen oath oaths obedience obols observatory ochre
octave october odd off office officer old one onion ons opal open operation operator optimist orange orbit orbital
orchard orcs order ore orient orphan orphans orrery ossuary other otter otters ottoman our outer outside ovens
overpass overseer owl own oxen oyster paddle pads palace paletas palisade palm pan pancake pans panthers papa papal
paper parade park parley parrot parsnip parson particular parts party pass passage password pastor pasture patch path
patience patient pats paw payroll pays peace peach peaches peacock peak pease peat pebble pedigree pelican penguin
pens pensions pentecost peony people pepper per percentage perch perhaps perry perseverance persevering persian
persimmon persons pest petit pets pewter pharmacy philosopher pho piano pickle pie pier piers pig pigeon pike pilaf
pillar pilot pinch pine ping pink pip pipes pit placid plain planting plants plaque plate platform plausible plaza
pleasance please plinth plot plug plum plumbing plume plush pocket pockmarked pod poetry point poison poisoned pole
police polish polisher polite polo pomegranate pond pop porridge port portmaster portuguese post postern posting posts
potato power prayer prays preacher precinct precious prefect prescription president press price pride priest priestess
primary prime primrose prince princess principal principality prior prison private producer professor promise promised
promises prompt property prophet proposal providence provost prudence psalm psalter pudding puff puffin puffing
pumpkin punctual punjabi purpose pylon quarrel quarter quarterly quartermaster quay quechua queen questions quetzal
queue quiet quill quills quince quirk quit quits quran rabbit race radish raft rag ragged rail rain rally ram ramadan
ramp rams ranch ransom rascal rat rates rats rattle rattleby rattlesnake ravens rays reach reading ready reasonable
reasons receipts red reds reed reef reformatory refusal refuses regained regent regiment regional registrar regret
regrets rein relay reluctance remainder remedy reminder republic reservoir rest retreat returns reverend rib ribbon
rich riddle ridge right rim ring rings rise river rivers riverside road roads roarer robber rock rods rolls roman
romanian roof rooftop rook room root rooted rose rosette rot rota rough round roundabout roux rovers row rowan rowing
royal rubber ruby rue rule ruling rum rumour run runaway running runs russian rust ruts saar sabbath sable sabre
sackcloth sacred saddle saddles saffron saga sags saint sal salamander salmon saloon salsa salt salted saltines salts
samarqandi san sand sandals sandpit sankt sanskrit santa sap sari satin saturday saturdays saturn sausages save
sawdust sawmill saxon says scales scarf school scorpion scotch scottish scouts scraping scratch screen screws
scriptorium scullery sea second secondary secretary section sector seeds seismograph semicolon sen senador senator
seneschal senhor senhora sennit september serbian serene serf sergeant serpent servant service sesame seven seventh
señor señora shades shadows shaft shah shares shark shears shed sheep sheikh shelf sheriff shield shift shirts shoal
shoals shoebox shoes shogun short shortage shoulder shovels show shrine shrug sides siege sight signor signora signs
sila silas silence silent silk sill silver simmering singer singing sings sins sir sis sister sisters sits six
sixpence sixth skerry skin skipper skull sky slack slag slant slate slates slavic sledges sleep sleeping sleepy sleeve
slick sliding slime slippers slope slot slow slower slowly slug sly small smelter smiling smith smoke snail snake snap
snow snowfall snuff snuffer sober society sock socket sockets socks soft softly software sogdian soggy sons soon soot
sorcery sorrel sorrow sorry souls sound soup sour southern sow spa space spaceport spade spanish spanner sparrow
speaker sphere spice spin spindle spine spinners spit splinter split sponge spoon sports sprig spring springs squad
square squeaky squire stack staff stair stairs stake stakes stalk stalls stamina stamps stand stapler star starboard
stars starts states static station stationmaster steam steeple step steppe steps steward stitch stolen stone stones
stools stop stopped storks stovepipe strait strand street streets strike studio stuffing stump sub sudsy sugar sulk
sulphur sultan summer sums sun sunday sundays sundial sundown sung sunken sunny super superintendent superior supper
surrender swahili swallowed swan swede swedish sweep swell swimmer sycamore syrup system são séance table tables tack
tagalog tail tailors tails take taken takes talk talking tallow tamarind tamarisk tamil tampu tan tank tanner tante
tap tara taro tarts task tax tea teacup teal teeth tell teller tells temper temperance temple temporal ten tend tens
tent tenth terminal terms tern terrace tether tethered texas thankful that thats thaw thawmonth the theft them then
there thief thimble thin thing things third thistle thorn those thoughts thousand thread three threnody threshers
threshold throne thumb thumbs thunder thunderous thursday thursdays tibetan tick ticking tie tiger tilted time tin
tinder tinker tiny tipping titan tithe toast tobacco together token told toll tollgate tom tomato tongue tons tooth
toothpick top torah torn tortoise tosher toss totara tour towel tower town trading train tram tranquility treacle
treasure treaty tree trees trench trial trinidadian tripod troll trooper truce trunk tsar tuareg tuba tube tubes tuck
tuesday tuesdays tugs tui tulip tumble tunnel tuns tuppence turkey turkish turmeric turn turned turnip turnkey turtle
tusk tweed twelfth twelve twenty twins two type tyre ugly ultramarine umbral umbrella umbrellas umpire unanswered
uncle uncouth undelivered under undercroft understorey understudy undertow underworld unfinished union unit university
unknown unlit unlucky unpaid unquiet unready upper upright upside urdu urgent usher vacuum valley valleys van vanished
vassal vat vault vein velvet venetian vengeance vent vents venus vertigo veterinarian vicar vicarage vice viceroy
victory victual vigilance viking village vine vinegar vineyard vipers virtue viscous visitors vizier volcano vole
volume volunteers vows wake walk walking wall walrus wand wandering wands war ward warden warmth warn wars warts was
wasp water wats wave wax wayfarer weather weathercock weaver weavers wedding wednesday wednesdays wee weeping weighing
weighmaster weir well wells welsh west western wet whale wharf wheat wheel wheezer whetstone whiskers whisper
whispering whistle whistling white whitsun who wide widow widows wife wikipedia willow willows wind windmill wing
winnow winter wisp wit with women wood works worry wrecker wreckers wren wrong xhosa yard yarn yarrow yawn year yellow
yes yesterday yiddish yin yoruba you young younger your youth yrs zealous zest zoo zulu
"""
COMMON = frozenset(_COMMON.split())
"""Words that may be capitalized in mid-sentence without being names (titles, peoples, feasts), or must not be names."""
