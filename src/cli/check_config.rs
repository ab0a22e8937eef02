//! `bitnetd check-config`: checks a configuration file, and the files of names and patterns that it names. Deliberately starts nothing.

use super::{Failure, host, print, unit_sandbox};
use crate::config::{self, Config, DEFAULT_FILE, FallbackModel};
use crate::protocol::text::for_terminal;
use crate::{guard, home};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Every key with its default, in its order.
const REFERENCE: &str = include_str!("../../config/bitnetd.toml");

/// Say what is wrong with a configuration, and where
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CheckConfig {
    /// Print every key with its value and where the value comes from: the file, the profile, this machine or the default
    #[arg(long)]
    explain: bool,
    /// The TOML file [default: /etc/bitnetd/bitnetd.toml]
    #[arg(value_name = "FILE", default_value = DEFAULT_FILE, hide_default_value = true)]
    file: PathBuf,
}

pub(super) fn run(args: CheckConfig) -> Result<(), Failure> {
    let config =
        Config::load(&args.file, &host::host()).map_err(|error| Failure::usage(error.to_string()))?;
    let wrong = |error: String| Failure::usage(format!("{}: {error}", args.file.display()));
    config.home.file.as_deref().map(home::file::load).transpose().map_err(wrong)?;
    config.guard.filter_file.as_deref().map(guard::filter::load).transpose().map_err(wrong)?;
    for (key, path) in [("model.path", &config.model.path), ("model.fallback", &fallback_file(&config))] {
        path.as_deref().map(|path| readable(key, path)).transpose().map_err(wrong)?;
    }
    if !args.explain {
        let notes: String = notes(&config).iter().map(|note| format!("note: {note}\n")).collect();
        return print(for_terminal(&format!("{}: sound\n{notes}", args.file.display())).as_bytes());
    }
    let text = config::read_text(&args.file)
        .map_err(|why| Failure::usage(format!("{}: {why}", args.file.display())))?;
    print(for_terminal(&explain(&config, &text)).as_bytes())
}

/// The file of the fallback, where it is one.
fn fallback_file(config: &Config) -> Option<PathBuf> {
    match &config.model.fallback {
        Some(FallbackModel::File(path)) => Some(path.clone()),
        Some(FallbackModel::BuiltIn) | None => None,
    }
}

/// Whether the model's file that `key` names is there and this user may read it. What is in it is a question for `inspect`.
fn readable(key: &str, path: &Path) -> Result<(), String> {
    let wrong = |why: String| format!("{key}: {}: {why}", path.display());
    // Before it is opened: to open a pipe waits for its other end.
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => return Err(wrong("no regular file; name a GGUF file".into())),
        Ok(_) => {}
        Err(error) => return Err(wrong(error.to_string())),
    }
    File::open(path).map(drop).map_err(|error| wrong(error.to_string()))
}

/// Notes about other files that are named: those that the service would not see, and those that are missing. They are
/// notes, since a file may be for another user's eyes, or be made later.
fn notes(config: &Config) -> Vec<String> {
    let login = config.mqtt.as_ref().and_then(|mqtt| mqtt.login.as_ref());
    let password = login.and_then(|login| login.password_file.clone());
    let secrets = [("http.token_file", &config.http.token_file), ("mqtt.password_file", &password)];
    let others = [
        ("model.path", &config.model.path),
        ("model.fallback", &fallback_file(config)),
        ("home.file", &config.home.file),
        ("guard.filter_file", &config.guard.filter_file),
        ("telemetry.textfile", &config.telemetry.textfile),
    ];
    let hidden = secrets.iter().chain(&others).filter_map(|(key, path)| {
        let why = unit_sandbox::hidden(path.as_deref()?)?;
        Some(format!("{key}: {why}"))
    });
    let missing = secrets.iter().filter_map(|(key, path)| {
        let path = path.as_deref()?;
        let is_missing = path.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        is_missing.then(|| format!("{key}: {}: no such file", path.display()))
    });
    hidden.chain(missing).collect()
}

/// One line for each key of the reference file.
fn explain(config: &Config, text: &str) -> String {
    // It was parsed before.
    let written = text.trim_start_matches('\u{feff}').parse::<toml::Table>().unwrap_or_default();
    let of_file = |section: &str, key: &str| match section {
        "" => written.get(key),
        _ => written.get(section)?.get(key),
    };
    let mut explained = String::new();
    let (mut section, mut seen) = (String::new(), BTreeSet::new());
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            continue;
        }
        let is_example = line.starts_with('#');
        let Some((key, default)) = line.trim_start_matches('#').split_once(" = ") else { continue };
        let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        if line.starts_with("# ") || !seen.insert(name.clone()) {
            continue;
        }
        let (value, source) = match (of_file(&section, key), chosen(config, &name)) {
            // Strings, numbers, truth values and lists of them look alike in TOML and in JSON.
            (Some(value), _) => (serde_json::to_string(value).unwrap_or_default(), "the file".to_owned()),
            (None, Some(chosen)) => chosen,
            (None, None) if is_example => ("none".to_owned(), "default".to_owned()),
            (None, None) => (default.to_owned(), "default".to_owned()),
        };
        explained += &format!("{name} = {value}  # {source}\n");
    }
    explained
}

/// The value of a key that the file leaves out, where the profile or this machine chooses it; and which of the two.
fn chosen(config: &Config, name: &str) -> Option<(String, String)> {
    let machine = || "this machine".to_owned();
    let source = || config.profile.map_or_else(machine, |profile| format!("profile {}", profile.name()));
    match (name, config.profile) {
        ("budget.threads", _) => Some((config.budget.threads.to_string(), source())),
        ("budget.memory_mb", _) => Some(((config.budget.memory_bytes >> 20).to_string(), source())),
        ("queue.depth", Some(_)) => Some((config.queue.depth.to_string(), source())),
        ("model.context", Some(profile)) if profile.most_context() < usize::MAX => {
            Some((format!("the model's own, at most {}", profile.most_context()), source()))
        }
        ("budget.parallel", Some(profile)) => {
            Some((format!("as many as fit, at most {}", profile.most_parallel()), source()))
        }
        ("device.id", _) => Some((format!("{:?}", config.device.id), machine())),
        _ => None,
    }
}
