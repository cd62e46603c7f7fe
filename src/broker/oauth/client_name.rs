//! What a client calls itself, as it may stand on a page.
//!
//! A stranger chose it, and a person decides by it. So it is one bounded line of characters that can be seen, it cannot
//! turn text around, close the quotation marks around it, or reach into the lines above and below. What names nobody is
//! said to be without a name. Which characters can be seen is Unicode's to say (UAX #44), not a list's here.

use icu_properties::props::{
    BinaryProperty, DefaultIgnorableCodePoint, EnumeratedProperty, ExtendedPictographic, GeneralCategory, QuotationMark,
};

/// Characters that are shown.
const MAX_NAME: usize = 80;
/// Marks above and below one letter (UTS #39 section 5.4).
const MAX_MARKS: usize = 4;
/// Without ink, though Unicode has no property that says so: the empty Braille pattern, a note's head, fillers of
/// hieroglyphs and of Khitan.
const BLANK: [char; 5] = ['\u{2800}', '\u{1d159}', '\u{13441}', '\u{13442}', '\u{16fe4}'];
/// What is shown instead of a name that names nobody.
const NOBODY: &str = "a client without a name";

/// A name that can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientName(String);

/// What a character is good for in a name.
enum Kind {
    Space,
    Nothing,
    Quotation,
    Mark,
    Ink,
}

fn kind(c: char) -> Kind {
    use GeneralCategory as Category;
    if c.is_whitespace() || BLANK.contains(&c) {
        return Kind::Space;
    }
    if DefaultIgnorableCodePoint::for_char(c) {
        return Kind::Nothing;
    }
    if QuotationMark::for_char(c) {
        return Kind::Quotation;
    }
    match Category::for_char(c) {
        // Among the formats are those that turn text around.
        Category::Control
        | Category::Format
        | Category::Unassigned
        | Category::PrivateUse
        | Category::Surrogate
        | Category::LineSeparator
        | Category::ParagraphSeparator => Kind::Nothing,
        Category::NonspacingMark | Category::EnclosingMark => Kind::Mark,
        _ => Kind::Ink,
    }
}

impl ClientName {
    /// Of what a client says.
    pub(crate) fn of(said: &str) -> Self {
        let (mut shown, mut length) = (String::new(), 0);
        // Marks on the last letter.
        let mut marks = Vec::new();
        let mut is_apart = false;
        let mut rest = said.chars().peekable();
        while let Some(c) = rest.next() {
            let is_inside_a_word =
                !is_apart && shown.ends_with(char::is_alphanumeric) && rest.peek().is_some_and(|c| c.is_alphanumeric());
            let c = match kind(c) {
                Kind::Space => {
                    is_apart = true;
                    continue;
                }
                Kind::Mark if is_apart || shown.is_empty() || marks.len() >= MAX_MARKS || marks.contains(&c) => {
                    continue;
                }
                Kind::Mark => {
                    marks.push(c);
                    c
                }
                Kind::Quotation if is_inside_a_word => '\'',
                Kind::Nothing | Kind::Quotation => continue,
                Kind::Ink => c,
            };
            if marks.last() != Some(&c) {
                marks.clear();
            }
            let has_space = is_apart && !shown.is_empty();
            length += 1 + usize::from(has_space);
            if length > MAX_NAME {
                break;
            }
            if has_space {
                shown.push(' ');
            }
            is_apart = false;
            shown.push(c);
        }
        let names_somebody = |c: char| c.is_alphanumeric() || ExtendedPictographic::for_char(c);
        Self(if shown.contains(names_somebody) { shown } else { NOBODY.to_owned() })
    }
}

impl std::fmt::Display for ClientName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(said: &str) -> String {
        ClientName::of(said).0
    }

    #[test]
    fn a_name_is_one_bounded_line_that_cannot_be_turned_around() {
        assert_eq!(shown("  My\n\tclient \u{202e}gpj "), "My client gpj");
        assert_eq!(shown(&"x".repeat(500)).len(), 80);
        assert_eq!(shown(&"x ".repeat(500)).len(), 79);
    }

    #[test]
    fn a_name_of_nothing_that_can_be_seen_is_said_to_be_none() {
        for invisible in [
            "",
            "\u{3164}",
            "\u{2800}",
            "\u{ad}",
            "\u{180e}",
            "\u{34f}",
            "\u{fe0f}",
            "\u{e0041}\u{e007f}",
            "\u{115f}",
            "\u{17b4}",
            "\u{200b}",
            "\u{feff}",
            "\u{e000}",
            "\u{1d159}",
            "\u{13441}",
            "\u{2065}",
            "\u{378}",
            "...",
            "”“",
            "\u{301}\u{302}",
        ] {
            assert_eq!(shown(invisible), NOBODY, "{:?}", invisible.escape_unicode().to_string());
            assert_eq!(shown(&format!("C{invisible}l")).replace([' ', '.', '\'', '\u{301}', '\u{302}'], ""), "Cl");
        }
        for visible in ["x", "漢", "🤖", "Ünï", "שלום", "กี่"] {
            assert_eq!(shown(visible), visible);
        }
    }

    #[test]
    fn a_name_cannot_close_the_quotation_marks_around_it() {
        assert_eq!(shown("Claude” (verified by the operator). “"), "Claude (verified by the operator).");
        assert_eq!(shown("\"a\" ''b'' «c» „d‟ ＂e＂ 〝f〞 'g'"), "a b c d e f g");
        assert_eq!(shown("Bob’s client, bob's"), "Bob's client, bob's");
    }

    #[test]
    fn no_more_marks_stand_on_a_letter_than_writing_needs() {
        let many: String = ('\u{300}'..'\u{320}').collect();
        assert_eq!(shown(&format!("a{many}b")), "a\u{300}\u{301}\u{302}\u{303}b");
        assert_eq!(shown("a\u{301}\u{301}b\u{301}"), "a\u{301}b\u{301}", "the same one once a letter");
        assert_eq!(shown("\u{301}a \u{301}b"), "a b", "on nothing");
    }
}
