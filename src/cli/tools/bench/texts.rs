//! Texts for `bench --speculate`: prompts with answers as a model gives them, written for this program. One answer repeats
//! a document with a change, one summarises with quotes, and one repeats nothing.

use regex::Regex;
use std::collections::HashMap;

/// A prompt, and the answer to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Example {
    pub name: &'static str,
    pub prompt: &'static str,
    pub answer: &'static str,
}

/// The kinds of answers that are measured.
pub(super) const EXAMPLES: [Example; 3] = [
    Example { name: "echo", prompt: DOCUMENT, answer: CHANGED_DOCUMENT },
    Example { name: "quotes", prompt: ARTICLE, answer: SUMMARY },
    Example { name: "prose", prompt: QUESTION, answer: PROSE },
];

const DOCUMENT: &str = r#"Set the target temperature of the bathroom to 22.5 and give the whole document back as JSON.

{
  "home": "Lindenhof 7",
  "updated": "2026-03-14T06:45:00Z",
  "heating": {"mode": "schedule", "boiler_c": 48.5, "outside_c": 3.2, "pump": true},
  "rooms": [
    {"id": 11, "name": "Kitchen", "sensor": "zb-0x00158d0003f1", "temperature": 20.4, "humidity": 46, "target": 20.5, "valve": 31, "window": false},
    {"id": 12, "name": "Living room", "sensor": "zb-0x00158d0004a7", "temperature": 21.1, "humidity": 43, "target": 21.0, "valve": 18, "window": false},
    {"id": 15, "name": "Bathroom", "sensor": "zb-0x00158d000512", "temperature": 19.8, "humidity": 61, "target": 21.5, "valve": 74, "window": true},
    {"id": 17, "name": "Bedroom", "sensor": "zb-0x00158d0006c9", "temperature": 17.6, "humidity": 52, "target": 17.0, "valve": 0, "window": true},
    {"id": 18, "name": "Study", "sensor": "zb-0x00158d00078e", "temperature": 19.9, "humidity": 44, "target": 20.0, "valve": 27, "window": false}
  ],
  "alerts": [
    {"room": 15, "kind": "window_open", "since": "2026-03-14T06:31:12Z", "message": "The bathroom window has been open for fourteen minutes."}
  ]
}
"#;

const CHANGED_DOCUMENT: &str = r#"{
  "home": "Lindenhof 7",
  "updated": "2026-03-14T06:45:00Z",
  "heating": {"mode": "schedule", "boiler_c": 48.5, "outside_c": 3.2, "pump": true},
  "rooms": [
    {"id": 11, "name": "Kitchen", "sensor": "zb-0x00158d0003f1", "temperature": 20.4, "humidity": 46, "target": 20.5, "valve": 31, "window": false},
    {"id": 12, "name": "Living room", "sensor": "zb-0x00158d0004a7", "temperature": 21.1, "humidity": 43, "target": 21.0, "valve": 18, "window": false},
    {"id": 15, "name": "Bathroom", "sensor": "zb-0x00158d000512", "temperature": 19.8, "humidity": 61, "target": 22.5, "valve": 74, "window": true},
    {"id": 17, "name": "Bedroom", "sensor": "zb-0x00158d0006c9", "temperature": 17.6, "humidity": 52, "target": 17.0, "valve": 0, "window": true},
    {"id": 18, "name": "Study", "sensor": "zb-0x00158d00078e", "temperature": 19.9, "humidity": 44, "target": 20.0, "valve": 27, "window": false}
  ],
  "alerts": [
    {"room": 15, "kind": "window_open", "since": "2026-03-14T06:31:12Z", "message": "The bathroom window has been open for fourteen minutes."}
  ]
}
"#;

const ARTICLE: &str = r#"Summarise this report for the residents, and quote what matters word for word.

On the night of the ninth of February the circulation pump in the cellar stopped shortly after two o'clock. The controller noticed within ninety seconds that the return pipe was getting colder, switched the burner off to protect the heat exchanger, and sent an alarm to the caretaker's telephone. Because the telephone was muted, nobody saw the message before half past six in the morning. By then the temperature in the upper flats had fallen to fourteen degrees, while the ground floor, which is warmed by the bakery next door, was still at eighteen.

The technician who came at eight found that a capacitor of the pump's motor had failed. He replaced the whole pump, since spare parts for this model have not been made since 2019, and bled the air from all risers. The burner was started again at twenty to ten, and every flat was back above twenty degrees by early afternoon. No pipe had frozen and nothing else was damaged.

We have drawn three conclusions. First, alarms that concern heating or water will be sent to two people from now on, and the controller will ring both telephones until one of them confirms. Second, the old pumps in the north wing are of the same make and age, and they will be exchanged in April, before the heating season ends, so that a fault can be noticed while it still matters little. Third, a small electric heater with a thermostat will be placed in the pipe duct under the roof, which is the coldest place of the building and was only three degrees above freezing when the burner came back.

The repair cost 1,240 euros, which the maintenance reserve covers. The exchange in April is expected to cost about 3,800 euros. Residents whose flats stayed below sixteen degrees for more than six hours may ask for a reduction of their heating costs for February; a form lies in the entrance hall, and the administration answers all letters that arrive before the end of March.
"#;

const SUMMARY: &str = r#"Last month's loss of heat, in short:

What happened: the pump failed at night. "The controller noticed within ninety seconds that the return pipe was getting colder, switched the burner off to protect the heat exchanger, and sent an alarm to the caretaker's telephone." It went unseen: "Because the telephone was muted, nobody saw the message before half past six in the morning."

What was broken: "a capacitor of the pump's motor had failed." There is good news as well: "every flat was back above twenty degrees by early afternoon. No pipe had frozen and nothing else was damaged."

What will change: "alarms that concern heating or water will be sent to two people from now on, and the controller will ring both telephones until one of them confirms." As to the remaining machines, "the old pumps in the north wing are of the same make and age, and they will be exchanged in April, before the heating season ends". The attic gets protection too: "a small electric heater with a thermostat will be placed in the pipe duct under the roof".

Money: "The repair cost 1,240 euros, which the maintenance reserve covers." You can claim something back: "Residents whose flats stayed below sixteen degrees for more than six hours may ask for a reduction of their heating costs for February; a form lies in the entrance hall, and the administration answers all letters that arrive before the end of March."
"#;

const QUESTION: &str = "Why does bread go stale, and what helps against it?";

const PROSE: &str = r#"Most people believe that stale bread has simply dried out, yet a loaf sealed in plastic hardens almost as quickly as one left on the table. The real culprit is starch. While dough bakes, granules of it swell, burst and soak up water, which gives fresh crumb its soft and slightly elastic bite. As soon as the oven door opens the process begins to reverse: chains that were tangled line up again, squeeze moisture out between them and form tiny crystals. Chemists call this retrogradation. Meanwhile humidity wanders from inside to crust, so a crackling shell turns leathery within a day.

Cold speeds everything up, which is why a refrigerator is about the worst place you could choose. Freezing, on the other hand, stops those molecules from moving at all; slice first, wrap tightly, and thaw single pieces when you need them. Warmth undoes part of the damage. Above roughly sixty degrees Celsius crystals melt once more, and for an hour or so toast tastes nearly new. Sprinkling an old baguette with water before five minutes of strong heat works for similar reasons.

Bakers have their own tricks. Fat and sugar get in between neighbouring chains, hence brioche outlives a plain roll. Rye keeps longer than wheat because its gums bind liquid firmly, and sourdough adds acids that slow both mould and enzymes. Some mills blend in malted flour, whose amylase trims the longest strands. At home, a linen bag inside an earthenware pot is a sensible compromise: air can circulate, though not too freely. Should all else fail, remember that French toast, dumplings and gazpacho were invented by cooks who refused to throw anything away.
"#;

/// Turns texts into tokens of a vocabulary: each word as Llama 3's pre-tokenizer splits it, most of which are one token of
/// its vocabulary, gets a number of its own.
pub(super) struct WordIds {
    word: Regex,
    known: HashMap<String, u32>,
    vocab: u32,
}

impl WordIds {
    pub fn new(vocab: usize) -> Self {
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
        WordIds {
            word: Regex::new(pattern).expect("a valid pattern"),
            known: HashMap::new(),
            vocab: vocab as u32,
        }
    }

    /// The tokens of a text.
    pub fn tokens(&mut self, text: &str) -> Vec<u32> {
        let WordIds { word, known, vocab } = self;
        let id = |word: regex::Match<'_>| {
            let next = known.len() as u32;
            // Spread over the vocabulary, as the rows of real words are.
            *known.entry(word.as_str().to_owned()).or_insert((next * 7919 + 300) % *vocab)
        };
        word.find_iter(text).map(id).collect()
    }
}
