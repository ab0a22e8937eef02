//! The names of the home, as the configuration says: made at the start, changed at a reload.
//!
//! Deliberately knows no broker: the transport reads what is retained there.

use crate::config::{self, Config};
use crate::home::{NameList, NameTopics, SharedHome, file};
use log::error;
use std::sync::Arc;

/// The home with the names of the owner's file; `None` where no names are read. The error names the file and the place
/// in it.
pub(super) fn configured(config: &Config) -> Result<Option<Arc<SharedHome>>, String> {
    if !config.home.is_enabled {
        return Ok(None);
    }
    let prefix = config.mqtt.as_ref().map_or("homeassistant", |mqtt| mqtt.discovery_prefix.as_str());
    let home = SharedHome::new(names(&config.home)?, NameTopics { discovery_prefix: prefix.to_owned() });
    home.set_constrained(config.home.is_constrained);
    Ok(Some(Arc::new(home)))
}

/// Applies the settings of a reload, and reads the file again. A file with an error changes nothing.
pub(super) fn reload(home: &SharedHome, wanted: &config::Home) {
    home.set_constrained(wanted.is_constrained);
    match names(wanted) {
        Ok(names) => home.set_file(names),
        Err(message) => error!("the names of the home stay as they were: {message}"),
    }
}

fn names(config: &config::Home) -> Result<NameList, String> {
    config.file.as_deref().map_or(Ok(NameList::default()), file::load)
}
