//! Whatever an owner writes: sound settings, or an error of one line that names the place.

#![no_main]

use bitnetd::config::{Config, Host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let host = Host {
        name: "cellar".into(),
        memory_bytes: 1 << 30,
        processors: 4,
        big: vec![],
        runtime_dir: "/run/bitnetd".into(),
        cache_dir: "/var/cache/bitnetd".into(),
        state_dir: "/var/lib/bitnetd".into(),
        credentials_dir: None,
    };
    match Config::parse(text, "bitnetd.toml", &host) {
        Ok(config) => check(&config),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("bitnetd.toml"), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }
});

fn check(config: &Config) {
    assert!(!config.device.id.contains(['/', '+', '#']));
    assert!(config.socket.mode <= 0o777);
    assert!(config.budget.threads >= 1 && config.queue.depth >= 1);
    assert!(config.mqtt.as_ref().is_none_or(|mqtt| mqtt.port != 0));
}
