//! What a client hears that speaks HTTP to the socket, as `curl --unix-socket` does.
//!
//! Deliberately no HTTP server: it knows a request line when it sees one, and one answer.

/// Whether a connection's first line is an HTTP/1 request line. No line of JSON begins with a
/// capital letter, as every method does (RFC 9110, 9.1).
pub(super) fn is_request_line(line: &[u8]) -> bool {
    let version = line.len().checked_sub(b" HTTP/1.1".len()).map(|start| &line[start..]);
    line.first().is_some_and(u8::is_ascii_uppercase) && matches!(version, Some(b" HTTP/1.1" | b" HTTP/1.0"))
}

/// The answer to every HTTP request.
pub(super) fn not_implemented() -> Vec<u8> {
    let said = "this version of bitnetd speaks JSON lines here, not HTTP; \
        try: echo '{\"prompt\":\"hello\"}' | nc -N -U SOCKET\n";
    format!(
        "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{said}",
        said.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_told_from_json() {
        assert!(is_request_line(b"GET /health HTTP/1.1"));
        assert!(is_request_line(b"POST /v1/chat/completions HTTP/1.0"));
        for line in [&b"{\"prompt\":\"GET / HTTP/1.1"[..], b"get / HTTP/1.1", b"HTTP/1.1", b"GET /", b""] {
            assert!(!is_request_line(line));
        }
    }
}
