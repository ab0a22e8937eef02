use super::*;

pub(super) fn host() -> Host {
    Host {
        name: "cellar".into(),
        memory_bytes: 1 << 30,
        processors: 4,
        big: vec![],
        runtime_dir: "/run/bitnetd".into(),
        cache_dir: "/var/cache/bitnetd".into(),
        state_dir: "/var/lib/bitnetd".into(),
        credentials_dir: None,
    }
}

pub(super) fn error(text: &str) -> String {
    Config::parse(text, "bitnetd.toml", &host()).expect_err("a mistake").to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::parse("", "bitnetd.toml", &host()).expect("sound");
    assert_eq!(config, Config::defaults(&host()));
    assert_eq!(config.device.id, "cellar");
    assert_eq!(config.mqtt, None);
    assert_eq!(config.budget.memory_bytes, 768 << 20);
    assert_eq!(config.socket.path, Path::new("/run/bitnetd/bitnetd.sock"));
}

#[test]
fn the_example_for_production_has_its_thresholds() {
    let text = include_str!("../../config/production.toml");
    let config = Config::parse(text, "production.toml", &host()).expect("sound");
    let Alerts { cpu_percent, tokens_per_second, error_percent, ttft_ms, .. } = config.alerts;
    assert_eq!(config.budget.memory_bytes, 1024 << 20);
    assert_eq!((cpu_percent, tokens_per_second), (Some(80.0), Some(5.0)));
    assert_eq!((error_percent, ttft_ms), (Some(5.0), Some(5000.0)));
}

#[test]
fn the_reference_file_has_the_defaults() {
    let text = include_str!("../../config/bitnetd.toml");
    let config = Config::parse(text, "bitnetd.toml", &host()).expect("sound");
    assert_eq!(config, Config::defaults(&host()));
}

#[test]
fn threads_keep_to_the_big_cores_unless_there_are_more_of_them() {
    let host = Host { processors: 8, big: vec![4, 5, 6, 7], ..host() };
    let budget = |text| Config::parse(text, "bitnetd.toml", &host).expect("sound").budget;
    assert_eq!((budget("").threads, budget("").allowed_cpus), (4, vec![4, 5, 6, 7]));
    let some = budget("[budget]\nthreads = 2\n");
    assert_eq!((some.threads, some.allowed_cpus), (2, vec![4, 5, 6, 7]));
    let most = budget("[budget]\nthreads = 5\n");
    assert_eq!((most.threads, most.allowed_cpus), (5, vec![]));
}

#[test]
fn numbers_of_threads_can_be_pinned_up_to_all_there_are() {
    let text = "[budget]\nthreads = 3\ndecode_threads = 2\nprefill_threads = 3\n";
    let budget = Config::parse(text, "bitnetd.toml", &host()).expect("sound").budget;
    assert_eq!((budget.decode_threads, budget.prefill_threads), (Some(2), Some(3)));
    for (key, number) in [("decode_threads", 0), ("decode_threads", 4), ("prefill_threads", 4)] {
        let message = error(&format!("[budget]\nthreads = 3\n{key} = {number}\n"));
        assert!(message.starts_with(&format!("bitnetd.toml:3: budget.{key}: {number} ")), "{message}");
        assert!(message.contains("1 to 3"), "{message}");
    }
    // Without a number of all, the processors are the most.
    assert!(error("[budget]\ndecode_threads = 5\n").contains("1 to 4"));
}

#[test]
fn a_long_value_or_key_is_cut_in_the_message() {
    let long = "word ".repeat(500);
    let texts = [
        format!("[log]\nlevel = \"{long}\"\n"),
        format!("[model]\ncache_dir = \"{long}\"\n"),
        format!("[socket]\nmode = \"{long}\"\n"),
        format!("[telemetry]\ntextfile = \"{long}\"\n"),
        format!("[queue]\ndepth = \"{long}\"\n"),
        format!("[log]\n\"{long}\" = 1\n"),
    ];
    for text in texts {
        let message = error(&text);
        assert!(message.len() < 700 && message.contains('…'), "{}: {message}", message.len());
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let message = error("[device]\nid = \"a\"\n[mqtt]\nhots = \"b\"\n");
    assert!(message.starts_with("bitnetd.toml:4: "), "{message}");
    assert!(message.contains("hots") && message.contains("host"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    assert!(error("[nonsense]\nx = 1\n").contains("nonsense"));
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_line() {
    let message = error("[log]\nlevel = \"info\"\n[queue]\ndepth = \"many\"\n");
    assert!(message.starts_with("bitnetd.toml:4: queue.depth: "), "{message}");
    let message = error("[queue]\ndepth = 0\n");
    assert!(message.starts_with("bitnetd.toml:2: queue.depth"), "{message}");
    let message = error("[socket]\nmode = \"9\"\n");
    assert!(message.starts_with("bitnetd.toml:2: socket.mode"), "{message}");
}

#[test]
fn the_cache_folder_is_an_absolute_path_or_empty() {
    let message = error("[device]\nid = \"a\"\n[model]\ncache_dir = \"cache\"\n");
    assert!(message.starts_with("bitnetd.toml:4: model.cache_dir: \"cache\" "), "{message}");
    assert!(message.contains("absolute"), "{message}");
    let keep_in = |folder: &str| {
        let text = format!("[model]\ncache_dir = \"{folder}\"\n");
        Config::parse(&text, "bitnetd.toml", &host()).expect("sound").model.cache_dir
    };
    assert_eq!(keep_in(""), None);
    assert_eq!(keep_in("/srv/models"), Some("/srv/models".into()));
}

#[test]
fn prefixes_on_disk_are_off_by_default_and_want_a_folder() {
    let disk = |text: &str| Config::parse(text, "bitnetd.toml", &host()).expect("sound").cache.disk_bytes;
    assert_eq!((disk(""), disk("[cache]\ndisk_mb = 2\n")), (0, 2 << 20));
    let message = error("[cache]\ndisk_mb = 65537\n");
    assert!(message.starts_with("bitnetd.toml:2: cache.disk_mb: "), "{message}");
    let message = error("[cache]\ndisk_mb = 1\n[model]\ncache_dir = \"\"\n");
    assert!(
        message.starts_with("bitnetd.toml:2: cache.disk_mb: ") && message.contains("model.cache_dir"),
        "{message}"
    );
}

#[test]
fn the_state_folder_is_an_absolute_path_or_empty() {
    let message = error("[device]\nid = \"a\"\nstate_dir = \"state\"\n");
    assert!(message.starts_with("bitnetd.toml:3: device.state_dir: \"state\" "), "{message}");
    let state_in = |text: &str| Config::parse(text, "bitnetd.toml", &host()).expect("sound").device.state_dir;
    assert_eq!(state_in(""), Some("/var/lib/bitnetd".into()));
    assert_eq!(state_in("[device]\nstate_dir = \"\"\n"), None);
    assert_eq!(state_in("[device]\nstate_dir = \"/srv/state\"\n"), Some("/srv/state".into()));
}

#[test]
fn a_device_id_is_one_topic_level() {
    for id in ["a/b", "a+", "#", ""] {
        let message = error(&format!("[device]\nid = \"{id}\"\n"));
        assert!(message.starts_with("bitnetd.toml:2: device.id"), "{message}");
    }
}

fn mqtt(keys: &str) -> Mqtt {
    let text = format!("[mqtt]\nhost = \"b\"\n{keys}");
    Config::parse(&text, "bitnetd.toml", &host()).expect("sound").mqtt.expect("a link")
}

#[test]
fn the_broker_s_port_is_the_usual_one_with_and_without_encryption() {
    assert_eq!((mqtt("").port, mqtt("").tls), (1883, None));
    let encrypted = mqtt("tls = true\n");
    assert_eq!((encrypted.port, encrypted.tls), (8883, Some(Tls::default())));
    assert_eq!(mqtt("tls = true\nport = 1883\n").port, 1883);
}

#[test]
fn files_for_an_encryption_that_is_off_are_refused_not_ignored() {
    for key in ["ca_file", "cert_file", "key_file"] {
        let message = error(&format!("[mqtt]\nhost = \"b\"\n{key} = \"/etc/x.pem\"\n"));
        assert!(message.starts_with(&format!("bitnetd.toml:3: mqtt.{key}: ")), "{message}");
        assert!(message.contains("tls = true"), "{message}");
    }
}

#[test]
fn a_client_certificate_is_a_certificate_and_a_key() {
    let client = mqtt("tls = true\ncert_file = \"/c\"\nkey_file = \"/k\"\n").tls.expect("on").client;
    assert_eq!(client, Some(ClientCertificate { cert_file: "/c".into(), key_file: "/k".into() }));
    for (here, missing) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        let message = error(&format!("[mqtt]\nhost = \"b\"\ntls = true\n{here} = \"/x\"\n"));
        assert!(message.contains(&format!("mqtt.{missing}: missing")), "{message}");
    }
}

#[test]
fn the_protocol_version_is_a_number_or_a_text() {
    for (written, version) in [
        ("5", MqttVersion::V5),
        ("\"5\"", MqttVersion::V5),
        ("5.0", MqttVersion::V5),
        ("\"3.1.1\"", MqttVersion::V311),
    ] {
        assert_eq!(mqtt(&format!("version = {written}\n")).version, version, "{written}");
    }
    for written in ["3", "4", "3.1", "\"3.1\"", "true"] {
        let message = error(&format!("[mqtt]\nhost = \"b\"\nversion = {written}\n"));
        assert!(message.starts_with("bitnetd.toml:3: mqtt.version: "), "{message}");
        assert!(message.contains("\"3.1.1\""), "{message}");
    }
}

#[test]
fn home_assistant_discovery_is_on_unless_switched_off() {
    assert_eq!((mqtt("").discovery, mqtt("").discovery_prefix.as_str()), (true, "homeassistant"));
    assert!(!mqtt("discovery = false\n").discovery);
    assert_eq!(mqtt("discovery_prefix = \"a/b\"\n").discovery_prefix, "a/b");
    let message = error("[mqtt]\nhost = \"b\"\ndiscovery_prefix = \"a/#\"\n");
    assert!(message.starts_with("bitnetd.toml:3: mqtt.discovery_prefix: "), "{message}");
}

#[test]
fn the_text_file_is_one_that_node_exporter_reads() {
    let textfile = |path: &str| {
        let text = format!("[telemetry]\ntextfile = \"{path}\"\n");
        Config::parse(&text, "bitnetd.toml", &host()).map(|config| config.telemetry.textfile)
    };
    assert_eq!(textfile(""), Ok(None));
    assert_eq!(textfile("/var/lib/x/bitnetd.prom"), Ok(Some("/var/lib/x/bitnetd.prom".into())));
    for (wrong, way_out) in
        [("bitnetd.prom", "begin it with /"), ("/x/bitnetd.txt", ".prom"), ("/x/.prom", ".prom")]
    {
        let message = textfile(wrong).expect_err("a mistake").to_string();
        assert!(
            message.starts_with("bitnetd.toml:2: telemetry.textfile: ") && message.contains(way_out),
            "{message}"
        );
    }
}

#[test]
fn a_group_is_one_topic_level_and_no_device() {
    assert_eq!(mqtt("group = \"kitchens\"\n").group.as_deref(), Some("kitchens"));
    assert!(error("[mqtt]\nhost = \"b\"\ngroup = \"a/b\"\n").contains("mqtt.group"));
    let message = error("[mqtt]\nhost = \"b\"\ngroup = \"cellar\"\n");
    assert!(message.contains("mqtt.group") && message.contains("device.id"), "{message}");
}

#[test]
fn systemd_s_credential_is_the_password_of_a_user_without_a_file() {
    let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
    let host = Host { credentials_dir: Some(folder.path().into()), ..host() };
    let password = |keys: &str| {
        let text = format!("[mqtt]\nhost = \"b\"\nusername = \"u\"\n{keys}");
        let mqtt = Config::parse(&text, "bitnetd.toml", &host).expect("sound").mqtt.expect("a link");
        assert_eq!(mqtt.credentials, Some(folder.path().into()));
        mqtt.login.expect("a user").password_file
    };
    assert_eq!(password(""), None, "a user without a password");
    let credential = folder.path().join("mqtt-password");
    std::fs::write(&credential, "secret").expect("a temporary folder");
    assert_eq!(password(""), Some(credential));
    assert_eq!(password("password_file = \"/own\"\n"), Some("/own".into()));
}

#[test]
fn what_a_board_draws_is_two_figures_of_which_the_second_is_more() {
    let parsed = |keys: &str| Config::parse(&format!("[telemetry]\n{keys}"), "bitnetd.toml", &host());
    let watts = |keys: &str| parsed(keys).expect("sound").telemetry.board_watts;
    assert_eq!(watts(""), None);
    let both = Some(BoardWatts { idle: 2.5, full: 7.0 });
    assert_eq!(watts("idle_watts = 2.5\nfull_watts = 7\n"), both, "a whole number is a number too");
    for (here, missing) in [("idle_watts", "full_watts"), ("full_watts", "idle_watts")] {
        let message = error(&format!("[telemetry]\n{here} = 5\n"));
        assert!(
            message.contains(&format!("telemetry.{missing}: missing, though {here} is set")),
            "{message}"
        );
    }
    for (idle, full, key) in [
        ("7", "7.0", "full_watts"),
        ("7", "3", "full_watts"),
        ("0", "3", "idle_watts"),
        ("-1", "3", "idle_watts"),
        ("nan", "3", "idle_watts"),
        ("3", "inf", "full_watts"),
        ("3", "2000.1", "full_watts"),
        ("3", "\"6 W\"", "full_watts"),
    ] {
        let message = error(&format!("[telemetry]\nidle_watts = {idle}\nfull_watts = {full}\n"));
        assert!(message.contains(&format!("telemetry.{key}: ")), "{message}");
        assert!(message.starts_with("bitnetd.toml:"), "{message}");
    }
}

#[test]
fn what_needs_a_broker_is_refused_without_one_not_ignored() {
    for key in ["username = \"b\"", "tls = true", "group = \"kitchens\""] {
        let message = error(&format!("[mqtt]\n{key}\n"));
        assert!(message.starts_with("bitnetd.toml:1: mqtt.host: missing, though "), "{message}");
    }
    assert!(error("[mqtt]\nhost = \"b\"\npassword_file = \"/p\"\n").contains("mqtt.username"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_configuration() {
    let read = |text: &str| Config::parse(text, "bitnetd.toml", &host()).expect("sound");
    let text = "[device]\nid = \"attic\"\n";
    assert_eq!(read(&format!("\u{feff}{text}")), read(text));
    assert!(error("\u{feff}[device]\nid = \"a\"\nid = \"b\"\n").contains("id"), "a key given twice");
    let twice = error(&format!("\u{feff}\u{feff}{text}"));
    assert!(twice.contains("second byte-order mark"), "{twice}");
}

#[test]
fn a_configuration_is_a_regular_file_of_at_most_1_mib() {
    let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
    let load = |path: &Path| Config::load(path, &host()).map(drop).map_err(|error| error.to_string());
    let (fifo, large) = (folder.path().join("fifo"), folder.path().join("large.toml"));
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a new name");
    for path in [fifo.as_path(), Path::new("/dev/zero"), Path::new("/dev/null"), folder.path()] {
        let error = load(path).expect_err("no regular file");
        assert!(error.contains("no regular file"), "{error}");
    }
    std::fs::write(&large, "#".repeat(1 << 20)).expect("room");
    load(&large).expect("as large as one may be");
    std::fs::write(&large, "#".repeat((1 << 20) + 1)).expect("room");
    let error = load(&large).expect_err("too large");
    assert!(error.contains("1 MiB") && error.contains("large.toml"), "{error}");
}
