//! Takes out of a text what a bug report must not give away: logins, addresses, hosts, and whatever looks like a secret.
//!
//! What is taken out is replaced by the same word each time, so that who is who can still be followed.

use std::collections::HashMap;

/// Characters of a run that may be a secret: Forgejo's tokens have 40, session ids 48, hashes 64.
const SECRET_LENGTH: usize = 32;

/// Replaces names by stand-ins.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    names: HashMap<String, String>,
}

impl Redactor {
    /// From now on `name` reads `stand_in`, whatever its case.
    pub(crate) fn hide(&mut self, name: &str, stand_in: String) {
        if !name.is_empty() {
            self.names.insert(name.to_lowercase(), stand_in);
        }
    }

    /// The same, if it reads as it is until now.
    pub(crate) fn hide_unless_known(&mut self, name: &str, stand_in: String) {
        if !self.knows(name) {
            self.hide(name, stand_in);
        }
    }

    /// The text without them.
    pub(crate) fn clean(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_ascii_alphanumeric() || "._-@:".contains(c) {
                word.push(c);
                continue;
            }
            self.push(&mut out, &word);
            word.clear();
            out.push(c);
        }
        // The one that was added.
        out.pop();
        out
    }

    fn push(&self, out: &mut String, word: &str) {
        let core = word.trim_matches(['.', ':', '-']);
        if let Some(stand_in) = self.names.get(&core.to_lowercase()) {
            out.push_str(&word.replace(core, stand_in));
        } else if core.contains('@') {
            out.push_str("EMAIL");
        } else if is_address(core) {
            out.push_str("ADDRESS");
        } else if word.starts_with("fjb_") || is_secret(core) {
            out.push_str("SECRET");
        } else if let Some((name, rest)) =
            word.split_once(':').filter(|(name, rest)| self.knows(name) || self.knows(rest))
        {
            // A host with its port, an entry of a list.
            self.push(out, name);
            out.push(':');
            self.push(out, rest);
        } else {
            out.push_str(word);
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.names.contains_key(&name.to_lowercase())
    }
}

fn is_address(word: &str) -> bool {
    word.parse::<std::net::IpAddr>().is_ok() || word.parse::<std::net::SocketAddr>().is_ok()
}

/// Long runs of letters and digits with a digit in them. Message ids and keys' ids go with them: better one too many.
fn is_secret(word: &str) -> bool {
    word.len() >= SECRET_LENGTH
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && word.contains(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_secrets_are_replaced_and_the_rest_stays() {
        let mut redactor = Redactor::default();
        redactor.hide("alice", "user-1".to_owned());
        redactor.hide("git.acme.example", "FORGE".to_owned());
        let table = [
            ("login=alice of Alice, not malice", "login=user-1 of user-1, not malice"),
            ("https://git.acme.example/api and git.acme.example:3000.", "https://FORGE/api and FORGE:3000."),
            ("from 192.0.2.7 and [2001:db8::1]:443", "from ADDRESS and [ADDRESS]:443"),
            ("user:Alice, user:malice", "user:user-1, user:malice"),
            ("alice@acme.example wrote", "EMAIL wrote"),
            ("token 0123456789abcdef0123456789abcdef01234567;", "token SECRET;"),
            ("Bearer fjb_at_short", "Bearer SECRET"),
            ("children: 3 of 500, session 0a1b2c3d", "children: 3 of 500, session 0a1b2c3d"),
        ];
        for (text, clean) in table {
            assert_eq!(redactor.clean(text), clean);
        }
    }
}
