// Names, items and sentences of the story tasks, all our own. Small stories (preset mini) use the first
// kSmall... of each. Every name begins with its space. No adjective begins with a vowel, so that the article
// is always "a".
#pragma once

#include <string_view>

namespace lacuna::story_words {

inline constexpr std::string_view kPlaces[] = {
    " Moorland",   " Hollowbrook", " Ravenscar",   " Millbrook",  " Bellmere",   " Eastmoor",   " Holmside",
    " Brookfield", " Calderby",    " Sunderby",    " Larchmont",  " Highgarden", " Tidewater",  " Meadowvale",
    " Wolfden",    " Westerly",    " Redcliff",    " Dalebridge", " Summerset",  " Hawksend",   " Farnley",
    " Mistvale",   " Wheatley",    " Yarrowby",    " Plumstead",  " Birchley",   " Oakhurst",   " Springdale",
    " Ironford",   " Stonebeck",   " Fallowfield", " Windmere",   " Granbury",   " Silverton",  " Fernbank",
    " Lowgate",    " Greenlow",    " Lindale",     " Drystone",   " Underhill",  " Kingsmere",  " Riverton",
    " Winterton",  " Elmsworth",   " Bramwick",    " Ridgeway",   " Longmeadow", " Swanmere",   " Cedarholm",
    " Blackwater", " Kestrelby",   " Tolland",     " Valewood",   " Rowanby",    " Dovecote",   " Stillwater",
    " Sandholm",   " Oldcastle",   " Lakeside",    " Otterburn",  " Fairhaven",  " Copperhill", " Heathmoor",
    " Willowdale", " Newhaven",    " Glenmoor",    " Wrenfield",  " Mossbank",   " Frosthall",  " Wavecrest",
    " Ambleton",   " Rosefield",   " Skyholm",     " Ashwick",    " Timberley",  " Ivybridge",  " Coldstone",
    " Southwold",  " Goldcrest",   " Hazelton",    " Whitbeck",   " Alderby",    " Starlingby", " Netherby",
    " Marlstone",  " Barrowell",   " Pebbleton",   " Clearford",  " Foxhollow",  " Maplewood",  " Thornbury",
    " Orchardby",  " Northwick",   " Pinecrest",   " Crowmarsh",  " Hartwell",   " Brightsea",  " Woodside",
    " Seabrook",   " Deepwell"};
inline constexpr std::string_view kPeople[] = {
    " Edgar",  " Elias",  " Dora",   " Frank",  " Fiona",  " Flora",  " Jane",   " Joan",   " Conrad",
    " Ruth",   " Clara",  " Ella",   " Arthur", " Harold", " Hugo",   " Alice",  " Karl",   " Lara",
    " Carla",  " Linus",  " Felix",  " Edith",  " Martin", " Jasper", " Erik",   " Hector", " Benno",
    " Martha", " Paula",  " Hazel",  " Bruno",  " Elena",  " Max",    " Petra",  " Gerda",  " Daniel",
    " David",  " Olaf",   " Esther", " Lois",   " Nadia",  " Amos",   " Albert", " Moses",  " Ida",
    " Anna",   " Nina",   " Gilda",  " George", " Cecil",  " Hanna",  " Cora",   " Rita",   " Sara",
    " Greta",  " Robert", " Stella", " Julia",  " Irene",  " Gustav", " Marcus", " Otto",   " Nora",
    " Philip", " Ivan",   " Peter",  " Klara",  " Isaac",  " Sofia",  " Samuel", " Olga",   " Hilda",
    " Kate",   " Bella",  " Jacob",  " Emma",   " Magda",  " Lena",   " Daphne", " Ralph",  " Igor",
    " Ada",    " Mira",   " Rosa",   " Oscar",  " Frida",  " Jonas",  " Henry",  " Maria",  " Helen",
    " Leo",    " Iris",   " Simon",  " Lydia",  " Lucas",  " Emil",   " Agnes",  " Eva",    " Laura",
    " Edwin"};
inline constexpr std::string_view kAdjectives[] = {
    " small",    " large",  " round",   " square",  " heavy",  " light",  " plain",   " painted",
    " polished", " carved", " cracked", " dusty",   " shiny",  " bright", " pale",    " dark",
    " narrow",   " wide",   " tall",    " short",   " curved", " folded", " striped", " spotted",
    " rare",     " humble", " broken",  " mended",  " wet",    " dry",    " crooked", " smooth",
    " rough",    " sturdy", " tiny",    " massive", " faded",  " fancy",  " thick",   " thin"};
inline constexpr std::string_view kMaterials[] = {
    " copper",  " silver", " golden", " wooden", " glass",  " clay",  " leather", " paper",
    " stone",   " marble", " cotton", " woolen", " velvet", " silk",  " linen",   " bronze",
    " brass",   " pewter", " tin",    " steel",  " bamboo", " cedar", " walnut",  " maple",
    " crystal", " jade",   " coral",  " pearl",  " wicker", " felt"};
inline constexpr std::string_view kKinds[] = {
    " lamp",   " bowl",   " ring",    " box",     " mirror",    " basket",  " kettle",   " drum",
    " flute",  " key",    " bell",    " cup",     " plate",     " candle",  " chair",    " table",
    " book",   " map",    " coin",    " brush",   " comb",      " hat",     " scarf",    " glove",
    " belt",   " boot",   " blanket", " pillow",  " vase",      " jar",     " jug",      " spoon",
    " fork",   " knife",  " tray",    " chest",   " lantern",   " whistle", " rope",     " button",
    " mask",   " puppet", " clock",   " compass", " telescope", " needle",  " necklace", " bracelet",
    " buckle", " saddle"};

inline constexpr int kSmallPlaces = 60, kSmallPeople = 48, kSmallAdjectives = 18, kSmallMaterials = 15,
                     kSmallKinds = 21;

// The parts of a chapter, in order. {number} {place} {person} {item} {sold}. Several texts: one is drawn.
inline constexpr std::string_view kHeading = "Chapter{number}\n";
inline constexpr std::string_view kScene[] = {
    "At daybreak the merchant came to{place}, where the first smoke rose above the roofs and the streets "
    "were still wet from the night.",
    "After two days on the road the merchant reached{place}, a quiet town with crooked walls and a tower "
    "that leaned a little.",
    "The cart rolled into{place} around noon, past the well and the long row of stalls, and came to a halt "
    "beside the old gate.",
    "It was almost dark when the merchant arrived in{place}, and lanterns were being lit one after the other "
    "along the water.",
    "A ferry carried the merchant across to{place}, where the market had already begun and gulls circled "
    "over the fish stands.",
    "The road climbed for hours before it opened on{place}, spread out in the sun between two hills covered "
    "with heather."};
inline constexpr std::string_view kMeeting[] = {
    " Near the fountain{person} was waiting and waved from afar.",
    " At the inn{person} made room at the table by the window.",
    " In front of a small workshop the merchant was greeted by{person}.",
    " There{person} leaned against a doorpost and smiled at the tired horse.",
    " On the square the merchant ran into{person}, who knew everybody in town."};
inline constexpr std::string_view kTalk[] = {
    " They spoke about the weather, which had been strange all year.",
    " They talked for a while about the price of grain and the state of the bridges.",
    " There was news of a wedding, and of a quarrel about a fence.",
    " An old song came up, and neither of them could remember how it ended.",
    " They agreed that the winters used to be longer and the summers drier.",
    " A dog lay down between them and fell asleep at once.",
    " Somebody had seen a comet, or perhaps only a kite with a light on it.",
    " They laughed about a mule that refused to cross its own shadow.",
    " The soup was thin but hot, and the bread had just come out of the oven.",
    " There was much talk about a new road that nobody had yet begun to build.",
    " A child asked whether the sea was really salty everywhere.",
    " They counted the carts that went by and lost count at thirty.",
    " The bells rang for a long time, though nobody could say why.",
    " They remembered friends who had moved away and never written.",
    " A painter had come through last week and drawn every chimney.",
    " They argued in a friendly way about the best month for sowing barley."};
inline constexpr std::string_view kPurchase[] = {
    " Before long the merchant bought a{item} and wrapped it in a cloth.",
    " In the end the merchant bought a{item}, after some haggling over the price.",
    " From a stall close by the merchant bought a{item} and paid in small coins.",
    " The merchant bought a{item} there and put it at the bottom of the cart."};
inline constexpr std::string_view kSale[] = {
    " Later the merchant sold the{sold} to a stranger who had long looked for one.",
    " The merchant also sold the{sold}, though not without regret.",
    " A neighbour came by, and the merchant sold the{sold} at a fair price."};
inline constexpr std::string_view kFarewell[] = {
    " Then it was time to say farewell, and the cart moved on.\n\n",
    " They shook hands, promised to write, and parted at the gate.\n\n",
    " With a last look back the merchant took the road again.\n\n",
    " The horse grew restless, so the farewell was short.\n\n"};

// Brief chapters, for small models and short contexts.
inline constexpr std::string_view kBriefHeading = "Chapter{number}:";
inline constexpr std::string_view kBriefScene[] = {" The merchant came to{place}"};
inline constexpr std::string_view kBriefMeeting[] = {" and met{person}."};
inline constexpr std::string_view kBriefTalk[] = {" They spoke of rain.",     " They drank some tea.",
                                                  " They sang a song.",       " They fed the horse.",
                                                  " They shared some bread.", " They sat by the fire.",
                                                  " They told old jokes.",    " They watched the boats."};
inline constexpr std::string_view kBriefPurchase[] = {" The merchant bought a{item}."};
inline constexpr std::string_view kBriefSale[] = {" The merchant sold the{sold}."};
inline constexpr std::string_view kBriefFarewell[] = {" Then they parted.\n"};

}  // namespace lacuna::story_words
