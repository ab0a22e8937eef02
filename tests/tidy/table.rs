//! The rules as data. Places are paths under `src` without `.rs`: `engine/thread_pool` is `engine/thread_pool.rs`, or all of
//! `engine/thread_pool/` once it is a folder.

/// A place, and the crate modules it may name; the longest place that fits a file counts. Its own module it may
/// always name. `main.rs` and `lib.rs` are free.
#[rustfmt::skip] // a table is read by its columns
pub const MAY_NAME: &[(&str, &[&str])] = &[
    ("external_text",    &[]),
    ("random",           &[]),
    ("config",           &["external_text"]),
    ("protocol",         &["external_text"]),
    ("engine/error",     &["engine::quant"]),
    ("engine/quant",     &["random", "engine::error"]),
    ("engine/sampler",   &["engine::error", "engine::quant"]),
    ("engine/ops",       &["engine::error", "engine::quant"]),
    ("engine/thread_pool",      &["engine::error", "engine::quant"]),
    ("engine/thread_tuner",     &[]),
    ("engine/gguf",      &["engine::error", "engine::quant"]),
    ("engine/known_keys", &["engine::error", "engine::gguf"]),
    // Reads models as model and tokenizer do, and never runs one.
    ("engine/convert",   &["external_text", "engine::error", "engine::gguf", "engine::known_keys", "engine::quant", "engine::model", "engine::tokenizer"]),
    ("engine/derived_cache",      &["engine::gguf"]),
    ("engine/kernels",   &["random", "engine::quant", "engine::thread_pool"]),
    ("engine/tokenizer", &["external_text", "engine::error", "engine::gguf", "engine::known_keys"]),
    ("engine/model",     &["engine::error", "engine::gguf", "engine::known_keys", "engine::quant", "engine::kernels", "engine::ops", "engine::thread_pool", "engine::thread_tuner"]),
    ("engine/logprobs",  &[]),
    ("engine/grammar",   &["external_text", "engine::error", "engine::tokenizer"]),
    ("engine/prefix_cache", &[]),
    ("engine/prefix_store", &[]),
    ("engine/session",   &["engine::error", "engine::grammar", "engine::logprobs", "engine::model", "engine::prefix_cache", "engine::prefix_store", "engine::tokenizer", "engine::sampler"]),
    ("engine/perplexity", &["engine::error", "engine::session"]),
    ("engine/layout_detect",     &["engine::error", "engine::gguf", "engine::quant", "engine::model", "engine::session", "engine::tokenizer"]),
    // The facade, and the model inside the binary.
    ("engine/description",  &["engine"]),
    ("engine/mod",       &["engine"]),
    ("engine/synthetic",    &["random", "engine::error", "engine::gguf", "engine::quant"]),
    ("engine/builtin",   &["engine"]),
    ("home",             &["external_text", "config", "protocol"]),
    ("guard",            &["random", "external_text", "config", "protocol"]),
    ("telemetry",        &["random", "config", "protocol"]),
    ("transport",        &["external_text", "config", "protocol", "home", "telemetry"]),
    ("daemon",           &["config", "protocol", "home", "guard", "telemetry", "transport"]),
    // The only ones that see both sides.
    ("daemon/mod",       &["config", "protocol", "home", "guard", "telemetry", "transport", "daemon", "engine"]),
    ("daemon/worker",    &["config", "protocol", "home", "guard", "telemetry", "transport", "daemon", "engine"]),
    ("daemon/model_setup", &["config", "protocol", "guard", "daemon", "engine"]),
    ("daemon/structured", &["protocol", "engine"]),
    ("daemon/health", &["protocol", "telemetry", "daemon", "engine"]),
    ("daemon/home_intent", &["protocol", "home", "engine"]),
    ("daemon/memory_plan",    &["config", "protocol", "home", "guard", "telemetry", "transport", "daemon", "engine"]),
    ("cli",              &[EVERYTHING]),
];
pub const EVERYTHING: &str = "*";

/// Where `unsafe` may stand: the file map, the thread pool, the kernels, the sensor ioctl, the allocator.
pub const MAY_BE_UNSAFE: &[&str] = &[
    "engine/gguf/mmap",
    "engine/thread_pool",
    "engine/kernels",
    "telemetry/sensors/rpi_firmware/ioctl",
    "daemon/malloc_trim",
];

/// Libraries that one part of the program uses alone, so that they can be replaced, and that part.
pub const LIBRARY_USERS: &[(&[&str], &[&str])] = &[
    (&["rumqttc"], &["transport/mqtt/client", "cli/demo"]),
    (&["rustls", "rustls_native_certs"], &["transport/mqtt/client", "cli/pull/tls"]),
    (&["ureq"], &["cli/pull"]),
    (&["rustyline"], &["cli/chat"]),
    (&["hyper", "hyper_util"], &["transport/http"]),
    (&["llguidance"], &["engine/grammar"]),
];

/// What the engine never does: it could be published as a crate of its own tomorrow. Tests within it may.
pub const ENGINE_NEVER_NAMES: &[&[&str]] = &[&["tokio"], &["log"], &["std", "env"]];
pub const ENGINE_NEVER_CALLS: &[&str] = &["println", "eprintln", "print", "eprint", "dbg"];

/// Names that say nothing of what is inside.
pub const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc", "manager"];

/// Past this a file becomes a folder of the same name.
pub const MAX_LINES: usize = 600;

/// All that the top level holds, besides dot-folders and what git ignores.
pub const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "config",
    "systemd",
    "cross",
    "tests",
    "models",
    "docs",
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "rustfmt.toml",
    "clippy.toml",
    "target",
];

/// Folders that a page names and that its commands make.
pub const MADE_BY_COMMANDS: &[&str] = &["tests/fuzz/corpus/"];

/// Paths of the machine this was written on; in halves, so as not to find themselves.
pub const FOREIGN_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("../sha", "red")];

/// Names that several public types may share, since their module says which is meant. The last are sections of the
/// configuration, which have the names of the modules that they configure.
pub const SHARED_TYPE_NAMES: &[&str] = &[
    "Error",
    "Config",
    "Builder",
    "State",
    "Alerts",
    "Guard",
    "History",
    "Home",
    "Model",
    "Queue",
    "Telemetry",
];

#[rustfmt::skip] // words, not a column of them
/// Words of the old idiom, which may not come back in names or in comments.
pub const OLD_WORDS: &[&str] = &[
    "company", "desk", "door", "doors", "farewell", "farewells", "foretell", "foretells", "foretold", "heard", "hears", "heed",
    "manners", "met", "room", "rooms", "said", "told",
];

/// The same as more than one word, in comments.
pub const OLD_PHRASES: &[&str] = &["way out", "well again", "found out", "is not believed", "of ours"];
