//! The paths of the interface.
//!
//! Deliberately knows no translation of a call, only which one a path needs.

use crate::telemetry::HttpApi;
use hyper::Method;

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HttpRoute {
    /// `GET /health`
    Health,
    /// `GET /metrics`
    Metrics,
    /// `GET /report`
    Report,
    /// `GET /`
    Root,
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/NAME`
    Model(String),
    /// `POST /api/chat`
    OllamaChat,
    /// `POST /api/generate`
    OllamaGenerate,
    /// `GET /api/tags`
    OllamaTags,
    /// `POST /api/show`
    OllamaShow,
    /// `GET /api/ps`
    OllamaPs,
    /// `GET /api/version`
    OllamaVersion,
    /// `POST /api/pull`
    OllamaPull,
}

/// Why a call has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// Nothing has this path.
    NotFound,
    /// The path is called by these methods only.
    Method(&'static str),
}

impl HttpRoute {
    /// Whether it needs no token: it tells nothing but whether the daemon is well.
    pub fn is_public(&self) -> bool {
        *self == HttpRoute::Health
    }

    /// Whether the model answers it, or may.
    pub fn is_asking(&self) -> bool {
        matches!(
            self,
            HttpRoute::ChatCompletions
                | HttpRoute::Completions
                | HttpRoute::Responses
                | HttpRoute::OllamaChat
                | HttpRoute::OllamaGenerate
        )
    }
}

/// The API of a path, whose form its errors have. Ollama's clients call `/` to find out whether a server is there.
pub(super) fn api(path: &str) -> HttpApi {
    match path {
        path if path.starts_with("/v1/") => HttpApi::OpenAi,
        path if path == "/" || path.starts_with("/api/") => HttpApi::Ollama,
        _ => HttpApi::Own,
    }
}

/// The route of a call.
pub(super) fn route(method: &Method, path: &str) -> Result<HttpRoute, NoRoute> {
    let (route, is_post) = match path {
        "/health" => (HttpRoute::Health, false),
        "/metrics" => (HttpRoute::Metrics, false),
        "/report" => (HttpRoute::Report, false),
        "/" => (HttpRoute::Root, false),
        "/v1/chat/completions" => (HttpRoute::ChatCompletions, true),
        "/v1/completions" => (HttpRoute::Completions, true),
        "/v1/responses" => (HttpRoute::Responses, true),
        "/v1/models" => (HttpRoute::Models, false),
        "/api/chat" => (HttpRoute::OllamaChat, true),
        "/api/generate" => (HttpRoute::OllamaGenerate, true),
        "/api/tags" => (HttpRoute::OllamaTags, false),
        "/api/show" => (HttpRoute::OllamaShow, true),
        "/api/ps" => (HttpRoute::OllamaPs, false),
        "/api/version" => (HttpRoute::OllamaVersion, false),
        "/api/pull" => (HttpRoute::OllamaPull, true),
        path => match path.strip_prefix("/v1/models/") {
            Some(name) if !name.is_empty() => (HttpRoute::Model(percent_decoded(name)), false),
            _ => return Err(NoRoute::NotFound),
        },
    };
    let is_right =
        if is_post { *method == Method::POST } else { matches!(*method, Method::GET | Method::HEAD) };
    if is_right { Ok(route) } else { Err(NoRoute::Method(if is_post { "POST" } else { "GET, HEAD" })) }
}

/// A part of a path with its escaped characters (`%20`) read; what is no such character stays.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_its_methods() {
        assert_eq!(route(&Method::GET, "/health"), Ok(HttpRoute::Health));
        assert_eq!(route(&Method::HEAD, "/metrics"), Ok(HttpRoute::Metrics));
        assert_eq!(route(&Method::GET, "/report"), Ok(HttpRoute::Report));
        assert_eq!(route(&Method::POST, "/metrics"), Err(NoRoute::Method("GET, HEAD")));
        assert_eq!(route(&Method::GET, "/v1/chat/completions"), Err(NoRoute::Method("POST")));
        assert_eq!(route(&Method::POST, "/api/chat"), Ok(HttpRoute::OllamaChat));
        for path in ["/metrics/", "/Metrics", "", "*", "/health/../metrics", "/v1", "/v1/models/", "/v1/x"] {
            assert_eq!(route(&Method::GET, path), Err(NoRoute::NotFound), "{path}");
        }
    }

    #[test]
    fn a_model_is_named_in_the_path() {
        let model = |path| route(&Method::GET, path);
        assert_eq!(model("/v1/models/a%20b%2Fc"), Ok(HttpRoute::Model("a b/c".into())));
        assert_eq!(model("/v1/models/a/b%"), Ok(HttpRoute::Model("a/b%".into())));
        assert_eq!(model("/v1/models/%+f"), Ok(HttpRoute::Model("%+f".into())));
        assert_eq!(model("/v1/models/%f0%"), Ok(HttpRoute::Model("\u{fffd}%".into())));
    }

    #[test]
    fn errors_have_the_form_of_the_path_s_api() {
        assert_eq!(
            [api("/v1/x"), api("/api/x"), api("/"), api("/health")],
            [HttpApi::OpenAi, HttpApi::Ollama, HttpApi::Ollama, HttpApi::Own]
        );
    }
}
