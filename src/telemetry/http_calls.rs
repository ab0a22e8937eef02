//! Counters of calls over HTTP.

use super::Counter;
use crate::protocol::HttpCalls;

/// The API of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpApi {
    /// OpenAI's.
    OpenAi,
    /// Ollama's.
    Ollama,
    /// The daemon's own pages.
    Own,
}

/// The counters since start.
#[derive(Debug, Default)]
pub struct HttpCounters {
    openai: Counter,
    ollama: Counter,
    own: Counter,
    denied: Counter,
    ignored_keys: Counter,
}

impl HttpCounters {
    /// A call of this API was made.
    pub fn called(&self, api: HttpApi) {
        match api {
            HttpApi::OpenAi => self.openai.add(),
            HttpApi::Ollama => self.ollama.add(),
            HttpApi::Own => self.own.add(),
        }
    }

    /// A call was not allowed: its host, its origin or its token.
    pub fn denied(&self) {
        self.denied.add();
    }

    /// So many keys of a call are not known here and were ignored.
    pub fn ignored_keys(&self, count: u32) {
        self.ignored_keys.set(self.ignored_keys.get() + u64::from(count));
    }

    /// The counts now.
    pub fn counts(&self) -> HttpCalls {
        HttpCalls {
            openai: self.openai.get(),
            ollama: self.ollama.get(),
            own: self.own.get(),
            denied: self.denied.get(),
            ignored_keys: self.ignored_keys.get(),
        }
    }
}
