//! What ties a browser to what it does here: two cookies, and what is derived from them.
//!
//! The browser cookie is a key that the browser keeps for us: whoever does not hold it can neither answer a consent
//! page (CSRF) nor bring back somebody else's login from Forgejo, because the form's token and PKCE's verifier are
//! computed from it. The visit cookie says who is logged in. With https both have the `__Host-` prefix, so that no
//! neighbour below the same domain can set them (draft-ietf-httpbis-rfc6265bis section 4.1.3.2).

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cookie::{Cookie, SameSite};
use hmac::{Hmac, KeyInit, Mac};
use rand::rngs::SysRng;
use sha2::Sha256;
use std::time::Duration;

use crate::auth::token::{BrowserKey, NoRandomness, TokenHash, VisitKey};

/// How long a browser keeps the key after the last page that needs it: longer than anything that depends on it.
const COOKIE_TTL: Duration = Duration::from_hours(24);

/// How cookies are made here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cookies {
    secure: bool,
}

/// One browser.
#[derive(Debug)]
pub(crate) struct Browser {
    key: BrowserKey,
    /// To be set, so that the browser keeps it for a while from now on.
    pub(crate) set: Option<HeaderValue>,
}

/// Why nothing is done with a form.
#[derive(Debug)]
pub(crate) enum NotOurs {
    /// A page of another site sends it.
    OtherSite,
    /// The browser has not kept the key that it was given with the page.
    NoCookie,
    /// It was made for another browser, for something else, or before this browser got another key: of two first pages that
    /// are opened at once the later one's key stays.
    OtherForm(Browser),
}

impl Cookies {
    /// For a broker at this address. Without https, which is possible on one's own machine only, they must do without
    /// the prefix.
    pub(crate) fn new(public_url: &str) -> Self {
        Self { secure: public_url.starts_with("https://") }
    }

    fn browser_name(self) -> &'static str {
        if self.secure { "__Host-fjb-browser" } else { "fjb-browser" }
    }

    fn visit_name(self) -> &'static str {
        if self.secure { "__Host-fjb-visit" } else { "fjb-visit" }
    }

    fn make(self, name: &str, value: &str, keep: Duration) -> Option<HeaderValue> {
        let cookie = Cookie::build((name, value))
            .path("/")
            .max_age(keep.try_into().ok()?)
            .http_only(true)
            // Lax, because the way back from Forgejo is a navigation from another site.
            .same_site(SameSite::Lax)
            .secure(self.secure);
        let mut value = HeaderValue::try_from(cookie.to_string()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The browser that sends these headers, with a new key if it has none. What begins now must be able to end, so the
    /// browser keeps the key from now on.
    pub(crate) fn browser(self, headers: &HeaderMap) -> Result<Browser, NoRandomness> {
        let key = match self.known_browser(headers) {
            Some(browser) => browser.key,
            None => BrowserKey::mint(&mut SysRng)?,
        };
        let set = self.make(self.browser_name(), key.expose(), COOKIE_TTL);
        Ok(Browser { key, set })
    }

    /// The browser that sends these headers, if it has a key.
    pub(crate) fn known_browser(self, headers: &HeaderMap) -> Option<Browser> {
        let key = values(headers, self.browser_name()).find_map(BrowserKey::parse)?;
        Some(Browser { key, set: None })
    }

    /// The browser that sends a form about `about`, if the form was made for it. Browsers that send `Sec-Fetch-Site`
    /// tell a form of ours from one of another site; the form's token does for all.
    pub(crate) fn sender(self, headers: &HeaderMap, about: &str, token: Option<&str>) -> Result<Browser, NotOurs> {
        if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin") {
            return Err(NotOurs::OtherSite);
        }
        let browser = self.known_browser(headers).ok_or(NotOurs::NoCookie)?;
        if browser.sent(about, token) { Ok(browser) } else { Err(NotOurs::OtherForm(browser)) }
    }

    /// The visit that these headers name.
    pub(crate) fn visit(self, headers: &HeaderMap) -> Option<TokenHash> {
        values(headers, self.visit_name()).find_map(VisitKey::parse).map(|visit| visit.hash())
    }

    /// The cookie of a visit that begins.
    pub(crate) fn begin_visit(self, visit: &VisitKey, keep: Duration) -> Option<HeaderValue> {
        self.make(self.visit_name(), visit.expose(), keep)
    }

    /// The cookie of a visit that ends.
    pub(crate) fn end_visit(self) -> Option<HeaderValue> {
        self.make(self.visit_name(), "", Duration::ZERO)
    }
}

/// The values of a cookie; there may be several lines and several of one name.
fn values<'a>(headers: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = lines.flat_map(Cookie::split_parse).filter_map(Result::ok);
    cookies.filter(move |cookie| cookie.name() == name).filter_map(|cookie| cookie.value_raw())
}

impl Browser {
    /// What a login is bound to.
    pub(crate) fn hash(&self) -> TokenHash {
        self.key.hash()
    }

    fn mac(&self, purpose: &str, about: &str) -> Option<Hmac<Sha256>> {
        // HMAC takes a key of any length; the fallback keeps this total without a panic.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose().as_bytes()).ok()?;
        mac.update(purpose.as_bytes());
        mac.update(b"|");
        mac.update(about.as_bytes());
        Some(mac)
    }

    /// The token that a form about `about` must carry.
    pub(crate) fn form_token(&self, about: &str) -> String {
        let mac = self.mac("form", about).map(|mac| mac.finalize().into_bytes());
        mac.map(|mac| URL_SAFE_NO_PAD.encode(mac)).unwrap_or_default()
    }

    /// Whether a form about `about` was made for this browser; compared in constant time.
    fn sent(&self, about: &str, token: Option<&str>) -> bool {
        let Some(given) = token.and_then(|token| URL_SAFE_NO_PAD.decode(token).ok()) else { return false };
        self.mac("form", about).is_some_and(|mac| mac.verify_slice(&given).is_ok())
    }

    /// PKCE's verifier towards Forgejo for one login (RFC 7636 section 4.1). Stored nowhere: only the browser that
    /// began the login brings back what it is computed from.
    pub(crate) fn verifier(&self, state: &str) -> String {
        let mac = self.mac("pkce", state).map(|mac| mac.finalize().into_bytes());
        mac.map(|mac| URL_SAFE_NO_PAD.encode(mac)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browser(cookies: Cookies) -> (Browser, HeaderMap) {
        let browser = cookies.browser(&HeaderMap::new()).expect("random bytes");
        let set = browser.set.as_ref().expect("a cookie").to_str().expect("text").to_owned();
        let mut headers = HeaderMap::new();
        let pair = set.split(';').next().expect("a pair").to_owned();
        headers.insert(COOKIE, HeaderValue::try_from(format!("other=1; {pair}")).expect("a value"));
        (browser, headers)
    }

    #[test]
    fn a_form_is_good_in_the_browser_and_about_the_thing_it_was_made_for() {
        let cookies = Cookies::new("https://mcp.example.org");
        let (one, headers) = browser(cookies);
        let same = cookies.known_browser(&headers).expect("known");
        let (other, _) = browser(cookies);
        let token = one.form_token("a");
        assert!(same.sent("a", Some(&token)));
        assert!(!same.sent("b", Some(&token)));
        assert!(!other.sent("a", Some(&token)));
        assert!(!same.sent("a", None) && !same.sent("a", Some("")));
        assert_eq!(one.verifier("s").len(), 43);
        assert_ne!(one.verifier("s"), other.verifier("s"));
        assert_ne!(one.verifier("s"), one.form_token("s"));
    }

    #[test]
    fn a_browser_keeps_its_key_for_as_long_as_it_comes_back() {
        let cookies = Cookies::new("https://mcp.example.org");
        let (first, headers) = browser(cookies);
        let again = cookies.browser(&headers).expect("random bytes");
        assert!(first.set.is_some() && again.set == first.set, "the same key, kept from now on");
    }

    #[test]
    fn cookies_are_out_of_reach_of_scripts_and_of_neighbours() {
        let set = |url: &str| browser(Cookies::new(url)).0.set.expect("a cookie").to_str().expect("text").to_owned();
        let secure = set("https://mcp.example.org");
        assert!(secure.starts_with("__Host-fjb-browser=fjb_br_"));
        for part in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
            assert!(secure.contains(part), "{secure}");
        }
        assert!(!secure.contains("Domain"));
        assert!(set("http://127.0.0.1:8080").starts_with("fjb-browser="));
    }
}
