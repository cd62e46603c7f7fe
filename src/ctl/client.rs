//! The tool's side of the operator's door.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;

use forgejo_mcp_broker::admin::api::{
    BACKUP_KEYS, ChangeToken, CreateToken, CreatedToken, EndedSession, EndedUser, Finding, KeyRotated, KeyView, Page,
    PageQuery, Problem, RestrictedToken, StatusView,
};
use wire::secret::TokenError;
use zeroize::Zeroizing;

/// Bytes of a request at most: a Forgejo token, two names and two lists.
const MAX_REQUEST: usize = 64 * 1024;

/// Why the tool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    #[error("the runtime cannot be built: {0}")]
    Runtime(io::Error),
    #[error("cannot write the result: {0}")]
    Output(io::Error),
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    #[error("cannot read {0}: {1}")]
    TokenFile(PathBuf, io::Error),
    #[error("that is no Forgejo token: {0}")]
    Token(TokenError),
    #[error("the broker cannot be reached at {0}")]
    Unreachable(PathBuf),
    #[error("you may not use {0}")]
    NotPermitted(PathBuf),
    #[error("{0}")]
    Refused(String),
    #[error("the broker's answer cannot be read; is it of the same version?")]
    Answer,
    #[error("the broker's answer broke off")]
    BrokenOff,
    #[error("cannot write {0}: {1}")]
    Backup(PathBuf, io::Error),
    #[error("the supervisor cannot be reached: no child can be started")]
    NoSupervisor,
    #[error("cannot write {0}: {1}")]
    Archive(PathBuf, io::Error),
    #[error("{0} of the findings must be mended")]
    Findings(usize),
}

impl CtlError {
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable(_) => Some("is forgejo-mcp-broker running? `systemctl status forgejo-mcp-broker`"),
            Self::NotPermitted(_) => Some("run it as root, or as the broker's user"),
            Self::NoSupervisor => Some("is forgejo-mcp-supervisor running? `systemctl status forgejo-mcp-supervisor`"),
            Self::Token(_) => Some("pipe the token in: `forgejo-mcp-brokerctl token create --user LOGIN < token-file`"),
            _ => None,
        }
    }

    /// Of sysexits.h.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Findings(_) => 1,
            Self::Token(_) | Self::Refused(_) => 65,
            Self::Input(_) | Self::TokenFile(..) => 66,
            Self::Unreachable(_) | Self::NoSupervisor => 69,
            Self::Runtime(_) => 70,
            Self::Backup(..) | Self::Archive(..) => 73,
            Self::Output(_) => 74,
            Self::Answer | Self::BrokenOff => 76,
            Self::NotPermitted(_) => 77,
        }
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Result<Self, CtlError> {
        // The socket needs no TLS, but the client is not made without a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A proxy of the environment is no business of the operator's socket, and would be told its own credentials.
        let http = reqwest::Client::builder().unix_socket(socket).no_proxy().build();
        let http = http.map_err(|e| CtlError::Runtime(io::Error::other(e)))?;
        Ok(Self { http, socket: socket.to_owned() })
    }

    pub(crate) async fn create(&self, asked: &CreateToken) -> Result<CreatedToken, CtlError> {
        // In one piece that is cleared when it was sent: a JSON body of the client's own making would stay in memory.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_REQUEST));
        serde_json::to_writer(&mut *body, asked).map_err(|_| CtlError::Answer)?;
        let request = self.request(Method::POST, "/tokens").header(CONTENT_TYPE, "application/json");
        let response = self.send(request.body(Bytes::from_owner(body))).await?;
        parsed(response).await
    }

    /// A page of `list`, such as `/tokens`.
    pub(crate) async fn page<T: DeserializeOwned>(&self, list: &str, query: &PageQuery) -> Result<Page<T>, CtlError> {
        parsed(self.send(self.request(Method::GET, list).query(query)).await?).await
    }

    pub(crate) async fn end_user(&self, login: &str) -> Result<Vec<EndedUser>, CtlError> {
        // As Forgejo names people; anything else would be another address.
        let name = login.strip_prefix("id:").unwrap_or(login);
        let known = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !known || name.bytes().all(|b| b == b'.') {
            return Err(CtlError::Refused(format!("`{login}` is neither a login of Forgejo's nor id:NUMBER")));
        }
        parsed(self.send(self.request(Method::DELETE, &format!("/users/{login}"))).await?).await
    }

    pub(crate) async fn revoke(&self, id: &str) -> Result<(), CtlError> {
        self.send(self.request(Method::DELETE, &token_path(id)?)).await.map(drop)
    }

    pub(crate) async fn change(&self, id: &str, asked: &ChangeToken) -> Result<RestrictedToken, CtlError> {
        let body = serde_json::to_vec(asked).map_err(|_| CtlError::Answer)?;
        let request = self.request(Method::PATCH, &token_path(id)?).header(CONTENT_TYPE, "application/json");
        parsed(self.send(request.body(body)).await?).await
    }

    pub(crate) async fn end_session(&self, session: &str) -> Result<EndedSession, CtlError> {
        let known = !session.is_empty() && session.bytes().all(|b| b.is_ascii_hexdigit());
        if !known {
            return Err(CtlError::Refused(format!("`{session}` is not a session of `sessions`")));
        }
        parsed(self.send(self.request(Method::DELETE, &format!("/sessions/{session}"))).await?).await
    }

    pub(crate) async fn doctor(&self) -> Result<Vec<Finding>, CtlError> {
        parsed(self.send(self.request(Method::GET, "/doctor")).await?).await
    }

    pub(crate) async fn status(&self) -> Result<StatusView, CtlError> {
        parsed(self.send(self.request(Method::GET, "/status")).await?).await
    }

    pub(crate) async fn key(&self) -> Result<KeyView, CtlError> {
        parsed(self.send(self.request(Method::GET, "/key")).await?).await
    }

    pub(crate) async fn rotate_key(&self) -> Result<KeyRotated, CtlError> {
        parsed(self.send(self.request(Method::POST, "/key/rotate")).await?).await
    }

    /// Writes a copy of the database into a new file; the ids of the keys that open it.
    pub(crate) async fn backup(&self, to: &Path) -> Result<String, CtlError> {
        let failed = |e| CtlError::Backup(to.to_owned(), e);
        // First: nothing is copied for a file that cannot be written.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
        let written = self.written(file, to).await;
        if written.is_err() {
            // A half copy must not be taken for a whole one.
            let _ = std::fs::remove_file(to);
        }
        written
    }

    async fn written(&self, mut file: File, to: &Path) -> Result<String, CtlError> {
        let failed = |e| CtlError::Backup(to.to_owned(), e);
        let mut response = self.send(self.request(Method::POST, "/backup")).await?;
        let keys = response.headers().get(BACKUP_KEYS).and_then(|keys| keys.to_str().ok()).unwrap_or_default();
        let keys = keys.to_owned();
        while let Some(piece) = response.chunk().await.map_err(|_| CtlError::BrokenOff)? {
            file.write_all(&piece).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        Ok(keys)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://broker{path}"))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CtlError> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(e) if cause_is(&e, io::ErrorKind::PermissionDenied) => {
                return Err(CtlError::NotPermitted(self.socket.clone()));
            }
            Err(_) => return Err(CtlError::Unreachable(self.socket.clone())),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let problem: Problem = response.json().await.map_err(|_| CtlError::Answer)?;
        Err(CtlError::Refused(problem.error))
    }
}

fn token_path(id: &str) -> Result<String, CtlError> {
    let known = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if known { Ok(format!("/tokens/{id}")) } else { Err(CtlError::Refused(format!("`{id}` is not an id of `grants`"))) }
}

async fn parsed<T: DeserializeOwned>(response: Response) -> Result<T, CtlError> {
    response.json().await.map_err(|_| CtlError::Answer)
}

fn cause_is(error: &reqwest::Error, kind: io::ErrorKind) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind) {
            return true;
        }
        cause = error.source();
    }
    false
}
