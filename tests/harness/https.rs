//! An https server on this machine that answers as it is told and counts: where clients keep their metadata documents.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

pub struct Server {
    pub port: u16,
    asked: Arc<AtomicUsize>,
    /// Its certificate, readable by everybody.
    pub ca: tempfile::NamedTempFile,
}

/// What a server says.
pub struct Answer {
    /// Its status line and headers.
    pub head: String,
    pub body: String,
    /// The time between the body's bytes; without one all come at once.
    pub trickles: Option<Duration>,
}

impl Server {
    /// `answer` makes head and body from the port.
    pub async fn start(answer: impl Fn(u16) -> (String, String) + Send + 'static) -> Self {
        Self::answering(move |port, _| {
            let (head, body) = answer(port);
            Answer { head, body, trickles: None }
        })
        .await
    }

    /// `answer` makes it from the port and the head of the request.
    pub async fn answering(answer: impl Fn(u16, &str) -> Answer + Send + 'static) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a certificate");
        let ca = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(ca.path(), cert.pem()).expect("written");
        std::fs::set_permissions(ca.path(), std::fs::Permissions::from_mode(0o644)).expect("readable");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a server")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
                let Answer { head, body, trickles } = answer(port, &request);
                let length = body.len();
                let head = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let pieces = body.as_bytes().chunks(if trickles.is_some() { 1 } else { length.max(1) });
                for piece in pieces {
                    if stream.write_all(piece).await.and(stream.flush().await).is_err() {
                        break;
                    }
                    if let Some(pause) = trickles {
                        sleep(pause).await;
                    }
                }
                let _ = stream.shutdown().await;
            }
        });
        Self { port, asked, ca }
    }

    /// The address of a document here, which is a client's id.
    pub fn id(&self) -> String {
        format!("https://localhost:{}/client.json", self.port)
    }

    /// Connections so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
