//! Responses and their header fields.
//!
//! Deliberately knows no request.

use super::access::AccessDenied;
use super::answer_body::AnswerBody;
use super::routes::NoRoute;
use crate::protocol::api::HttpRefusal;
use crate::protocol::{Refusal, ollama, openai};
use crate::telemetry::HttpApi;
use crate::telemetry::history::{self, ReportForm};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW,
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The header by which OpenAI's clients name a request in their errors.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asks a proxy (nginx) to pass on each event at once.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) type HttpResponse = Response<AnswerBody>;

/// A response of this media type.
pub(super) fn response(status: u16, content_type: &'static str, body: impl Into<AnswerBody>) -> HttpResponse {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A streamed response.
pub(super) fn streamed(content_type: &'static str, body: AnswerBody) -> HttpResponse {
    let mut response = response(200, content_type, body);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// A report of the history. A browser loads nothing for it, and shows it in no other page.
pub(super) fn report(form: ReportForm, body: AnswerBody) -> HttpResponse {
    let mut response = response(200, form.content_type(), body);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(history::CONTENT_POLICY));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// A refusal in the form of an API.
pub(super) fn refusal(api: HttpApi, refusal: &Refusal) -> HttpResponse {
    refused(match api {
        HttpApi::OpenAi => openai::refused(refusal),
        HttpApi::Ollama | HttpApi::Own => ollama::refused(refusal),
    })
}

/// A refusal that has the form of its API already.
pub(super) fn refused(refused: HttpRefusal) -> HttpResponse {
    let mut response = response(refused.status, JSON, refused.body);
    if let Some(seconds) = refused.retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// An error that no request caused, in the form of an API.
pub(super) fn error(api: HttpApi, status: u16, kind: &str, message: &str) -> HttpResponse {
    match api {
        HttpApi::OpenAi => response(status, JSON, openai::error_body(status, kind, message)),
        HttpApi::Ollama => response(status, JSON, ollama::error_body(message)),
        HttpApi::Own => response(status, TEXT, format!("{message}\n").into_bytes()),
    }
}

/// The response to a call that may not be made.
pub(super) fn denied(api: HttpApi, denied: &AccessDenied) -> HttpResponse {
    let kind = match denied.status {
        400 => "invalid_request",
        401 => "invalid_api_key",
        403 => "forbidden",
        _ => "unavailable",
    };
    let mut response = error(api, denied.status, kind, &denied.message);
    if denied.status == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The response to a call of a path or a method that does not exist.
pub(super) fn no_route(api: HttpApi, reason: NoRoute) -> HttpResponse {
    match reason {
        NoRoute::NotFound => error(
            api,
            404,
            "unknown_url",
            "no such path; there are /health, /metrics, /report, /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, \
             and /api/chat, /api/generate, /api/tags, /api/show, /api/ps, /api/version, /api/pull",
        ),
        NoRoute::Method(allowed) => {
            let mut response =
                error(api, 405, "method_not_allowed", &format!("call this path with {allowed}"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            response
        }
    }
}

/// The answer to a browser that asks whether a page may call.
pub(super) fn preflight() -> HttpResponse {
    let mut response = response(204, TEXT, Vec::new());
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    response
}

/// Adds the header fields that every response to a call has.
pub(super) fn finish(
    mut response: HttpResponse,
    api: HttpApi,
    id: &str,
    origin: Option<HeaderValue>,
) -> HttpResponse {
    let headers = response.headers_mut();
    // Scripts that ask for a page with netcat read to the end of the connection.
    if api == HttpApi::Own {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
    response
}
