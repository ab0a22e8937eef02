//! What a broker retains of a home, an owner's file, and a sentence: descriptions come, change and go on a few topics,
//! within the limits, and whatever a model writes of a sentence is either in the home's names or says that nothing fits.

#![no_main]

use bitnetd::home::tool_call::{function_answer, sentence_after};
use bitnetd::home::{
    Home, HomeNames, IntentPrompt, IntentScope, MAX_NAMES, NOTHING_FITS, NameList, NameTopics, file, overview,
};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

const TOPICS: [&str; 5] = [
    "homeassistant/light/a/config",
    "homeassistant/sensor/node/b/config",
    "homeassistant/device/c/config",
    "zigbee2mqtt/bridge/devices",
    "zigbee2mqtt/bridge/groups",
];

// Messages are separated by a zero byte; the first byte of each names its topic, or the file or the sentence.
fuzz_target!(|bytes: &[u8]| {
    let mut names = HomeNames::new(NameList::default(), NameTopics { discovery_prefix: "homeassistant".into() });
    for message in bytes.split(|byte| *byte == 0) {
        let Some((kind, payload)) = message.split_first() else { continue };
        let text = String::from_utf8_lossy(payload);
        match usize::from(*kind) % 8 {
            5 => drop(file::parse(&text, kind % 16 == 5).map(|names_of_file| names.set_file(names_of_file))),
            6 => {
                names.delivery_began();
                names.delivery_ended();
            }
            7 => check_sentence(&Arc::new(names.snapshot()), &text),
            topic => drop(names.on_message(TOPICS[topic], payload, 0)),
        }
    }
    let home = names.snapshot();
    // As many in the file, and as many from the broker; areas of devices besides.
    assert!(home.names().devices.len() <= 2 * MAX_NAMES);
});

/// The first line is the sentence, the rest what a model made of it.
fn check_sentence(home: &Arc<Home>, text: &str) {
    let (sentence, written) = text.split_once('\n').unwrap_or((text, ""));
    let intent = IntentPrompt::new(home, sentence);
    assert!(intent.lark().starts_with("start: "));
    let decision = intent.decide(written, &[(written.len(), 0.0)]);
    assert!(decision.fits || decision.text == NOTHING_FITS);
    let answer: serde_json::Value = serde_json::from_str(&decision.text).expect("JSON in any case");
    if let Some(area) = answer["slots"]["area"].as_str() {
        assert!(home.names().areas.iter().any(|known| known.name == area), "{area}");
    }
    if let Some(floor) = answer["slots"]["floor"].as_str() {
        assert!(home.names().floors.iter().any(|known| known.name == floor), "{floor}");
    }
    // Without a home, and as what is made of a client's functions and their results.
    let any = IntentPrompt::scoped(sentence, &IntentScope::default()).expect("that nothing fits");
    let decision = any.decide(written, &[(written.len(), 0.0)]);
    assert!(decision.fits || decision.text == NOTHING_FITS);
    function_answer(&decision.text, &[]);
    assert!(!sentence_after([written].into_iter()).is_empty());
    if let Some(listed) = overview::names(text) {
        assert!(listed.devices.len() <= MAX_NAMES);
    }
}
