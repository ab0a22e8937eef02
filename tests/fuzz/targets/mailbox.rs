//! Whatever a Raspberry Pi's firmware answers: a power is one that a board can have, and flags are those that stand there.

#![no_main]

use bitnetd::telemetry::sensors::{rails_watts, throttle_flags};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Some(watts) = rails_watts(&text) {
        // A line takes 17 bytes at least, and no rail is accepted with more than 100 V and 100 A.
        let most = (text.len() as f64 / 17.0) * 10_000.0;
        assert!(watts.is_finite() && (0.0..=most).contains(&watts), "{watts}");
        // The rails are distinguished by name: their order means nothing.
        let reversed: Vec<_> = text.lines().rev().collect();
        let again = rails_watts(&reversed.join("\n")).expect("the same lines");
        assert!((again - watts).abs() <= watts * 1e-9);
    }
    if let Some(flags) = throttle_flags(&text) {
        assert_eq!(throttle_flags(&format!("throttled=0x{flags:x}\n")), Some(flags));
    }
});
