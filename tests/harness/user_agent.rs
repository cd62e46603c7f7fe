//! A `user_agent` with a browser, without the browser: keeps cookies, reads forms, fills them in, follows redirects one by
//! one. Whoever includes this file may use a part of it only.

use std::collections::BTreeMap;

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Response, StatusCode, redirect};
use url::Url;

/// A page as it arrived.
#[derive(Debug, Clone)]
pub struct Page {
    pub url: Url,
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Page {
    /// Where it sends the browser.
    pub fn location(&self) -> Option<Url> {
        let to = self.headers.get(LOCATION)?.to_str().ok()?;
        self.url.join(to).ok()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The forms on it.
    pub fn forms(&self) -> Vec<Form> {
        let parts = self.text.split("<form").skip(1);
        parts.map(|part| Form::read(&self.url, part.split("</form>").next().unwrap_or_default())).collect()
    }

    /// The form that is sent to `path`.
    pub fn form(&self, path: &str) -> Form {
        let mut forms = self.forms().into_iter();
        forms
            .find(|form| form.action.path() == path)
            .unwrap_or_else(|| panic!("no form for {path} on {}:\n{}", self.url, self.text))
    }
}

/// A form with the values that it would send as it stands; buttons and unchosen options left out.
#[derive(Debug, Clone)]
pub struct Form {
    pub action: Url,
    pub fields: BTreeMap<String, String>,
}

impl Form {
    fn read(page: &Url, text: &str) -> Self {
        let action = attribute(text.split('>').next().unwrap_or_default(), "action").unwrap_or_default();
        let mut fields = BTreeMap::new();
        for input in text.split("<input").skip(1).filter_map(|part| part.split('>').next()) {
            let is_choice = attribute(input, "type").as_deref() == Some("radio");
            if is_choice && !input.contains(" checked") {
                continue;
            }
            if let Some(name) = attribute(input, "name") {
                fields.insert(name, attribute(input, "value").unwrap_or_default());
            }
        }
        Self { action: page.join(&action).expect("an address"), fields }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.insert(name.to_owned(), value.to_owned());
        self
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let value = tag.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?;
    let plain = value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#34;", "\"");
    Some(plain.replace("&#38;", "&").replace("&#39;", "'").replace("&amp;", "&"))
}

/// A browser.
#[derive(Debug, Clone)]
pub struct UserAgent {
    http: Client,
    /// By host, as browsers keep them: ports share.
    pub cookies: BTreeMap<(String, String), String>,
    login: String,
    password: String,
}

/// What a person decides on the consent page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Allow all that is offered.
    Allow,
    /// Allow what is chosen before the person chooses: reading only.
    ReadOnly,
    /// No.
    Deny,
}

impl UserAgent {
    pub fn new(login: &str, password: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().redirect(redirect::Policy::none()).no_proxy().build().expect("a client");
        Self { http, cookies: BTreeMap::new(), login: login.to_owned(), password: password.to_owned() }
    }

    async fn arrived(&mut self, url: Url, response: Response) -> Page {
        let host = url.host_str().unwrap_or_default().to_owned();
        for line in response.headers().get_all(SET_COOKIE) {
            let line = line.to_str().expect("text");
            let (name, value) = line.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            let key = (host.clone(), name.to_owned());
            if line.contains("Max-Age=0") {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
        let (status, headers) = (response.status(), response.headers().clone());
        Page { url, status, headers, text: response.text().await.unwrap_or_default() }
    }

    fn cookie_line(&self, url: &Url) -> String {
        let host = url.host_str().unwrap_or_default();
        let own = self.cookies.iter().filter(|((of, _), _)| of == host);
        own.map(|((_, name), value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// Opens an address, without following a redirect. A page that looks again by itself does.
    pub async fn open(&mut self, url: impl AsRef<str>) -> Page {
        loop {
            let page = self.glance(url.as_ref()).await;
            if page.header("refresh").is_empty() {
                return page;
            }
        }
    }

    /// The same, of a page that looks again by itself as it is at first.
    pub async fn glance(&mut self, url: impl AsRef<str>) -> Page {
        let url = Url::parse(url.as_ref()).expect("an address");
        let request = self.http.get(url.clone()).header(COOKIE, self.cookie_line(&url));
        let response = request.send().await.expect("an answer");
        self.arrived(url, response).await
    }

    /// Sends a form, without following a redirect.
    pub async fn send(&mut self, form: &Form) -> Page {
        let url = form.action.clone();
        let request = self.http.post(url.clone()).header(COOKIE, self.cookie_line(&url)).form(&form.fields);
        let response = request.send().await.expect("an answer");
        self.arrived(url, response).await
    }

    /// Goes where a client or a page sends them: logs in, consents, until a page is left that only reading helps
    /// with, or a redirect leads to a host that is neither of the `known` (scheme, host and port).
    pub async fn go(&mut self, url: &str, known: &[&str], decision: Decision) -> Page {
        let is_out = |next: &Url| !known.iter().any(|origin| next.as_str().starts_with(&format!("{origin}/")));
        self.walk(url, decision, is_out).await
    }

    /// Goes on in the same way until a redirect leads to this path, and does not follow it.
    pub async fn go_up_to(&mut self, path: &str, url: &str, decision: Decision) -> Url {
        let page = self.walk(url, decision, |next| next.path() == path).await;
        page.location().unwrap_or_else(|| panic!("not to {path}, but {} {}", page.status, page.text))
    }

    async fn walk(&mut self, url: &str, decision: Decision, is_end: impl Fn(&Url) -> bool) -> Page {
        let mut page = self.open(url).await;
        for _ in 0..20 {
            if let Some(next) = page.location() {
                if is_end(&next) {
                    return page;
                }
                page = self.open(&next).await;
                continue;
            }
            let known = ["/user/login", "/login/oauth/grant", "/oauth/consent"];
            let Some(form) = page.forms().into_iter().find(|form| known.contains(&form.action.path())) else {
                return page;
            };
            page = match form.action.path() {
                "/user/login" => {
                    let form = form.clone().with("user_name", &self.login).with("password", &self.password);
                    self.send(&form).await
                }
                "/login/oauth/grant" => self.send(&form.clone().with("granted", "true")).await,
                "/oauth/consent" => self.send(&decided(form.clone(), decision)).await,
                _ => return page,
            };
        }
        panic!("went in circles, at last to {}", page.url);
    }

    /// Opens the broker's account page, and logs in at Forgejo where that is asked.
    pub async fn account(&mut self, broker: &str, forgejo: &str) -> Page {
        let page = self.open(format!("{broker}/account")).await;
        let Some(form) = page.forms().into_iter().find(|form| form.action.path() == "/account/login") else {
            return page;
        };
        let sent = self.send(&form).await;
        self.go(sent.location().expect("a redirect").as_str(), &[broker, forgejo], Decision::Allow).await
    }
}

/// The consent form as a person leaves it.
pub fn decided(form: Form, decision: Decision) -> Form {
    match decision {
        Decision::Allow => form.with("access", "write").with("decision", "approve"),
        Decision::ReadOnly => form.with("decision", "approve"),
        Decision::Deny => form.with("decision", "deny"),
    }
}
