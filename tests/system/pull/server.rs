//! A web server over TLS that does what a test wants it to: cuts, stalls, lies, redirects. One request a connection.

use crate::Folder;
use crate::support::certificates::{Authority, Pair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of the range that is asked for.
    pub fn start(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.and_then(|start| start.parse().ok()).unwrap_or(0)
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As HTTP wants it.
    Clean,
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing more is sent after so many bytes of the body, until the client goes away.
    Stall(usize),
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

impl Answer {
    /// A status without a body.
    pub fn status(status: &'static str) -> Self {
        Answer { status, headers: vec![("Content-Length", "0".into())], body: Vec::new(), end: End::Clean }
    }

    /// What an honest server answers: the file, or its rest where the client has the beginning of this version.
    pub fn file(request: &Request, bytes: &[u8], etag: &str) -> Self {
        let start = request.start();
        let is_same = request.header("if-range").is_none_or(|version| version == etag);
        let mut headers = vec![("ETag", etag.to_owned())];
        let (status, start) = match start > 0 && is_same {
            true => {
                headers.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
                ("206 Partial Content", start)
            }
            false => ("200 OK", 0),
        };
        headers.push(("Content-Length", (bytes.len() - start).to_string()));
        Answer { status, headers, body: bytes[start..].to_vec(), end: End::Clean }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(own, _)| *own != name);
        self.headers.push((name, value.into()));
        self
    }

    pub fn ending(self, end: End) -> Self {
        Answer { end, ..self }
    }
}

/// The server. Its thread ends with the test's process.
pub struct Server {
    address: SocketAddr,
    ca_file: PathBuf,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that gives the answer to the request of that number, from 0.
    pub fn start(folder: &Folder, answer: impl Fn(usize, &Request) -> Answer + Send + 'static) -> Self {
        let authority = Authority::new("tests");
        let ca_file = folder.path("ca.crt");
        // Another server in the same folder is signed by another authority: both are trusted.
        let mut trusted = std::fs::read(&ca_file).unwrap_or_default();
        let own = std::fs::read(authority.write(&folder.path("own.crt"))).expect("just written");
        trusted.extend(own);
        std::fs::write(&ca_file, trusted).expect("a temporary folder");
        let tls = tls(&authority.sign("127.0.0.1", &folder.path("server")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = ServerConnection::new(Arc::clone(&tls)).expect("sound settings");
                // A client that goes away ends its connection and nothing else.
                let _ = serve(StreamOwned::new(tls, stream), &seen, &answer);
            }
        });
        Server { address, ca_file, requests }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub fn ca_file(&self) -> &str {
        crate::text(&self.ca_file)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn tls(pair: &Pair) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(&pair.cert).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Arc::new(config.expect("they belong together"))
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

fn serve(
    mut stream: Stream,
    seen: &Mutex<Vec<Request>>,
    answer: &impl Fn(usize, &Request) -> Answer,
) -> std::io::Result<()> {
    let request = read(&mut stream)?;
    let number = {
        let mut seen = seen.lock().expect("no panic");
        seen.push(request.clone());
        seen.len() - 1
    };
    let Answer { status, headers, body, end } = answer(number, &request);
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "\r\n")?;
    let sent = match end {
        End::Clean => body.len(),
        End::Cut(sent) | End::Stall(sent) => sent,
    };
    stream.write_all(&body[..sent])?;
    stream.flush()?;
    match end {
        End::Clean => {
            stream.conn.send_close_notify();
            stream.flush()
        }
        End::Cut(_) => Ok(()),
        End::Stall(_) => stream.read(&mut [0]).map(drop),
    }
}

fn read(stream: &mut Stream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut request =
        Request { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), headers: Vec::new() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(request)
}

/// A proxy that tunnels connections and counts them.
pub fn proxy() -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            *counted.lock().expect("no panic") += 1;
            thread::spawn(move || drop(tunnel(stream)));
        }
    });
    (format!("http://{address}"), count)
}

fn tunnel(mut client: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut server = TcpStream::connect(first.split(' ').nth(1).unwrap_or_default())?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || std::io::copy(&mut from_server, &mut to_client).map(drop));
    std::io::copy(&mut client, &mut server).map(drop)
}
