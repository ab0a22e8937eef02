//! The guard as the queue, the worker and a reload share it.
//!
//! Deliberately decides nothing: [`Guard`] does.

use super::{client_key, locked};
use crate::config;
use crate::guard::filter::{self, Filter};
use crate::guard::{Denied, Guard};
use crate::transport::Inbound;
use log::warn;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Reads the filter's file, if there is one; the error names the file and the line.
pub(super) fn load_filter(settings: &config::Guard) -> Result<Option<Filter>, String> {
    settings.filter_file.as_deref().map(filter::load).transpose()
}

/// The guard behind a lock, which is held only while one request is checked.
#[derive(Debug)]
pub(super) struct SharedGuard(Mutex<Guard>);

impl SharedGuard {
    /// A guard with these settings, without a filter.
    pub fn new(settings: &config::Guard) -> Self {
        SharedGuard(Mutex::new(Guard::new(settings.clone(), client_key::random(), Instant::now())))
    }

    /// Names clients in logs and reports with the key of the state folder, so that their names outlive the process.
    pub fn use_stored_key(&self, state_dir: Option<&Path>) {
        match state_dir.map(client_key::stored) {
            Some(Ok(key)) => locked(&self.0).set_client_key(key),
            Some(Err(error)) => warn!(
                "device.state_dir: the key of the clients' names is not stored there ({error}); they have other names after \
                 a restart"
            ),
            None => {}
        }
    }

    /// Adopts the settings of a start or of a reload, all but the filter.
    pub fn adopt(&self, settings: &config::Guard) {
        locked(&self.0).adopt(settings.clone());
    }

    /// Sets the filter of a start, whose memory is planned.
    pub fn set_filter(&self, filter: Option<Filter>) {
        locked(&self.0).set_filter(filter.map(Arc::new));
    }

    /// Reads the filter's file at a reload. A file with an error, or with patterns for which the memory plan has no place
    /// (`bytes`) beside those of now, changes nothing; the error names the file.
    pub fn reload_filter(
        &self,
        settings: &config::Guard,
        place: usize,
        bytes: impl Fn(&Filter) -> usize,
    ) -> Result<(), String> {
        let filter = load_filter(settings)?.filter(|filter| !filter.is_empty());
        // The searches that run end with the filter that they began with.
        let now = self.filter().map_or(0, |filter| bytes(&filter));
        if let (Some(filter), Some(path)) = (&filter, &settings.filter_file) {
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            let wanted = bytes(filter);
            if now + wanted > place {
                return Err(format!(
                    "{}: takes {:.1} MiB, and the memory plan has {:.1}; restart the daemon, which plans it, or take patterns out",
                    path.display(),
                    mib(wanted),
                    mib(place.saturating_sub(now))
                ));
            }
        }
        self.set_filter(filter);
        Ok(())
    }

    /// Checks a request, limits what it may ask for, and gives its client the name under which it is shown.
    pub fn check(&self, inbound: &mut Inbound) -> Result<(), Denied> {
        let mut guard = locked(&self.0);
        inbound.client = guard.shown_client(&inbound.limit_key, std::mem::take(&mut inbound.client));
        guard.check(&inbound.limit_key, &mut inbound.request, Instant::now())
    }

    /// How a client is shown whose requests did not come as far as the guard.
    pub fn shown_client(&self, client: &str) -> String {
        locked(&self.0).shown_client(client, client.to_owned())
    }

    /// Checks a prompt of so many tokens.
    pub fn check_tokens(&self, tokens: usize) -> Result<(), Denied> {
        locked(&self.0).check_tokens(tokens)
    }

    /// The filter, where there is one.
    pub fn filter(&self) -> Option<Arc<Filter>> {
        locked(&self.0).filter()
    }
}
