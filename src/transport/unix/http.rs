//! The answers for clients that speak HTTP to the socket, such as `curl --unix-socket` and scrapers behind a proxy.
//!
//! Deliberately no HTTP server: only the request line is read, never a header or a body, and each response closes
//! its connection.

/// The page that a request line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// `/metrics`
    Metrics,
    /// `/health`
    Health,
    /// `/metrics` or `/health`, with a method other than GET and HEAD.
    MethodNotAllowed,
    /// A path of the OpenAI API, which this version does not implement.
    NotImplemented,
    /// Any other path.
    Unknown,
}

/// A request line, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HttpRequest {
    pub page: Page,
    /// A HEAD request: the response has no body (RFC 9110, section 9.3.2).
    pub head_only: bool,
}

/// Parses a connection's first line; `None` where it is no HTTP/1 request line. No line of JSON begins with a
/// capital letter, and every method does (RFC 9110, section 9.1).
pub(super) fn parse_request_line(line: &[u8]) -> Option<HttpRequest> {
    let line = line.strip_suffix(b" HTTP/1.1").or_else(|| line.strip_suffix(b" HTTP/1.0"))?;
    if !line.first().is_some_and(u8::is_ascii_uppercase) {
        return None;
    }
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let page = match path {
        b"/metrics" => Page::Metrics,
        b"/health" => Page::Health,
        path if path.starts_with(b"/v1/") => Page::NotImplemented,
        _ => Page::Unknown,
    };
    let reads = matches!(method, b"GET" | b"HEAD");
    let page = if reads || matches!(page, Page::NotImplemented | Page::Unknown) {
        page
    } else {
        Page::MethodNotAllowed
    };
    Some(HttpRequest { page, head_only: method == b"HEAD" })
}

/// A response: status, content type and body.
#[derive(Debug)]
pub(super) struct HttpResponse<'a> {
    status: &'static str,
    content_type: &'static str,
    body: &'a str,
}

impl<'a> HttpResponse<'a> {
    /// The metrics.
    pub fn metrics(content_type: &'static str, body: &'a str) -> Self {
        HttpResponse { status: "200 OK", content_type, body }
    }

    /// Whether requests are accepted: not once the daemon is stopping.
    pub fn health(is_draining: bool) -> Self {
        let content_type = "application/json";
        if is_draining {
            return HttpResponse {
                status: "503 Service Unavailable",
                content_type,
                body: "{\"status\":\"shutting_down\"}\n",
            };
        }
        HttpResponse { status: "200 OK", content_type, body: "{\"status\":\"ok\"}\n" }
    }

    /// The error response for all other pages.
    pub fn refusal(page: Page) -> Self {
        let (status, body) = match page {
            Page::MethodNotAllowed => ("405 Method Not Allowed", "this page is read with GET\n"),
            Page::NotImplemented => (
                "501 Not Implemented",
                "this version of bitnetd takes prompts here as JSON lines, not over HTTP; \
                 try: echo '{\"prompt\":\"hello\"}' | nc -N -U SOCKET\n",
            ),
            Page::Metrics | Page::Health | Page::Unknown => {
                ("404 Not Found", "no such page; there are /metrics and /health\n")
            }
        };
        HttpResponse { status, content_type: "text/plain; charset=utf-8", body }
    }

    /// The response as bytes.
    pub fn bytes(&self, head_only: bool) -> Vec<u8> {
        let HttpResponse { status, content_type, body } = self;
        let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
        let sent = if head_only { "" } else { body };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
             Connection: close\r\n\r\n{sent}",
            body.len()
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(line: &str) -> Option<Page> {
        parse_request_line(line.as_bytes()).map(|asked| asked.page)
    }

    #[test]
    fn a_request_line_is_distinguished_from_json() {
        assert_eq!(page("GET /health HTTP/1.1"), Some(Page::Health));
        assert_eq!(page("POST /v1/chat/completions HTTP/1.0"), Some(Page::NotImplemented));
        for line in ["{\"prompt\":\"GET / HTTP/1.1", "get / HTTP/1.1", "HTTP/1.1", "GET /", "", " / HTTP/1.1"]
        {
            assert_eq!(page(line), None, "{line}");
        }
    }

    #[test]
    fn a_page_is_found_by_its_path_whatever_the_query() {
        assert_eq!(page("GET /metrics HTTP/1.1"), Some(Page::Metrics));
        assert_eq!(page("GET /metrics?name[]=x HTTP/1.0"), Some(Page::Metrics));
        for unknown in
            ["/", "/metrics/", "/Metrics", "*", "", "/health/../metrics", "/v1", "http://x/metrics"]
        {
            assert_eq!(page(&format!("GET {unknown} HTTP/1.1")), Some(Page::Unknown), "{unknown}");
        }
        assert_eq!(parse_request_line(b"GET /\xff HTTP/1.1").map(|asked| asked.page), Some(Page::Unknown));
    }

    #[test]
    fn only_reading_methods_read() {
        assert_eq!(page("POST /metrics HTTP/1.1"), Some(Page::MethodNotAllowed));
        let head = parse_request_line(b"HEAD /metrics HTTP/1.1").expect("a request line");
        assert_eq!(head, HttpRequest { page: Page::Metrics, head_only: true });
        let refused =
            String::from_utf8(HttpResponse::refusal(Page::MethodNotAllowed).bytes(false)).expect("UTF-8");
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn a_head_says_how_long_the_body_would_be() {
        let answer = HttpResponse::health(false);
        let (whole, head) = (answer.bytes(false), answer.bytes(true));
        assert!(whole.starts_with(&head) && head.ends_with(b"\r\n\r\n"));
        let text = format!("Content-Length: {}\r\n", whole.len() - head.len());
        assert!(String::from_utf8(head).expect("UTF-8").contains(&text));
    }

    #[test]
    fn a_stopping_daemon_is_unhealthy() {
        let response =
            |is_draining| String::from_utf8(HttpResponse::health(is_draining).bytes(false)).expect("UTF-8");
        assert!(
            response(false).starts_with("HTTP/1.1 200 ")
                && response(false).ends_with("{\"status\":\"ok\"}\n")
        );
        assert!(response(true).starts_with("HTTP/1.1 503 "), "{}", response(true));
    }
}
