//! `[page]`: how the operator's pages call themselves, whom to ask, and their logo. Read once, at the start.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use axum::body::Bytes;
use url::Url;
use wire::config_file::{NamedFile, Section};

/// What the pages are called where the operator gives no name.
const NAME: &str = "Forgejo for MCP clients";
/// Characters of a name.
const MAX_NAME: usize = 60;
/// Bytes of an address for questions.
const MAX_CONTACT: usize = 500;
/// Bytes of a logo: it is kept in memory, and a phone fetches it.
const MAX_LOGO: u64 = 256 * 1024;

/// What the operator says of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// Its name.
    pub(crate) name: String,
    /// Where its operator is asked.
    pub(crate) contact: Option<Contact>,
    /// Its logo.
    pub(crate) logo: Option<Logo>,
}

impl Default for Site {
    fn default() -> Self {
        Self { name: NAME.to_owned(), contact: None, logo: None }
    }
}

/// An address for questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contact {
    /// `https:` or `mailto:`.
    pub(crate) address: String,
    /// As people read it.
    pub(crate) text: String,
}

/// An image, of a kind that its own first bytes show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logo {
    /// Its media type.
    pub(crate) media_type: &'static str,
    /// The file.
    pub(crate) image: Bytes,
}

impl Site {
    /// Reads the section.
    pub(crate) fn read(mut section: Section) -> Self {
        let name = section.value("name", |value| {
            let text = value.as_str().map(str::trim).unwrap_or_default();
            let fits = (1..=MAX_NAME).contains(&text.chars().count()) && !text.contains(char::is_control);
            if fits { Ok(text.to_owned()) } else { Err(format!("must be a line of 1 to {MAX_NAME} characters")) }
        });
        let contact = section.value("contact", |value| Contact::parse(value.as_str().unwrap_or_default()));
        let logo = section.file("logo_file").and_then(NamedFile::path).and_then(|file| {
            let read = Logo::read(&file).map_err(|what| format!("{}: {what}", file.display()));
            read.map_err(|what| section.complain("logo_file", what)).ok()
        });
        section.close();
        Self { name: name.unwrap_or_else(|| NAME.to_owned()), contact, logo }
    }
}

impl Contact {
    fn parse(text: &str) -> Result<Self, String> {
        let is_mail = text.split_once('@').is_some_and(|(who, host)| !who.is_empty() && host.contains('.'));
        let address = if is_mail && !text.contains(':') { format!("mailto:{text}") } else { text.to_owned() };
        let url = Url::parse(&address).ok().filter(|_| address.len() <= MAX_CONTACT);
        let url = url.filter(|url| match url.scheme() {
            "https" => url.has_host() && url.username().is_empty(),
            "mailto" => url.path().contains('@') && !url.path().contains(char::is_whitespace),
            _ => false,
        });
        let url = url.ok_or("must be an address of mail, or of a page that begins with https://")?;
        let text = url.as_str().trim_start_matches("mailto:").trim_start_matches("https://").trim_end_matches('/');
        Ok(Self { text: text.to_owned(), address: url.into() })
    }
}

impl Logo {
    fn read(file: &Path) -> Result<Self, String> {
        let mut image = Vec::new();
        let opened = File::open(file).map_err(|e| e.to_string())?;
        opened.take(MAX_LOGO.saturating_add(1)).read_to_end(&mut image).map_err(|e| e.to_string())?;
        if u64::try_from(image.len()).unwrap_or(u64::MAX) > MAX_LOGO {
            return Err(format!("is longer than {MAX_LOGO} bytes"));
        }
        let media_type = media_type(&image).ok_or("is no PNG, JPEG, WebP or SVG")?;
        Ok(Self { media_type, image: image.into() })
    }
}

/// By what stands first in the file; a name can end as it likes.
fn media_type(image: &[u8]) -> Option<&'static str> {
    match image {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        text => {
            let text = std::str::from_utf8(text).ok()?.trim_start_matches('\u{feff}').trim_start();
            let is_svg = text.starts_with("<svg") || text.starts_with("<?xml") && text.contains("<svg");
            is_svg.then_some("image/svg+xml")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Site, String> {
        let mut root = Section::from_text("broker.toml", text);
        let site = Site::read(root.section("page"));
        root.finish().map(|()| site).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_need_be_said() {
        assert_eq!(read(""), Ok(Site::default()));
    }

    #[test]
    fn a_contact_is_mail_or_a_page_and_nothing_that_does_something() {
        let said = |text: &str| Contact::parse(text).map(|contact| (contact.address, contact.text));
        let both = |address: &str, text: &str| Ok((address.to_owned(), text.to_owned()));
        assert_eq!(said("ops@example.org"), both("mailto:ops@example.org", "ops@example.org"));
        assert_eq!(said("mailto:ops@example.org"), both("mailto:ops@example.org", "ops@example.org"));
        assert_eq!(said("https://example.org/help/"), both("https://example.org/help/", "example.org/help"));
        for bad in
            ["", "ops", "javascript:alert(1)//@a.b", "http://example.org", "data:text/html,x", "mailto:x", "https:"]
        {
            assert!(said(bad).is_err(), "{bad}");
        }
        assert!(read("page.contact = 7").is_err() && read(&format!("page.name = \"{}\"", "x".repeat(61))).is_err());
    }

    #[test]
    fn a_logo_is_an_image_by_its_own_bytes_and_small() {
        let dir = tempfile::tempdir().expect("a directory");
        let logo = |bytes: &[u8]| {
            let file = dir.path().join("logo.png");
            std::fs::write(&file, bytes).expect("written");
            read(&format!("page.logo_file = \"{}\"", file.display())).map(|site| site.logo.expect("there").media_type)
        };
        assert_eq!(logo(b"\x89PNG\r\n\x1a\n..."), Ok("image/png"));
        assert_eq!(logo(b"\xff\xd8\xff\xe0"), Ok("image/jpeg"));
        assert_eq!(logo(b"RIFF\0\0\0\0WEBPVP8 "), Ok("image/webp"));
        assert_eq!(logo(b"\xef\xbb\xbf<?xml version='1.0'?><svg/>"), Ok("image/svg+xml"));
        for bad in [&b""[..], b"<html><svg>", b"\x7fELF", b"GIF89a"] {
            assert!(logo(bad).expect_err("no image").contains("is no PNG, JPEG, WebP or SVG"));
        }
        let mut long = b"\x89PNG\r\n\x1a\n".to_vec();
        long.resize(300_000, 0);
        assert!(logo(&long).expect_err("too long").contains("longer than 262144 bytes"));
        assert!(read("page.logo_file = \"/nonexistent\"").is_err());
    }
}
