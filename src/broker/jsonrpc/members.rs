//! The members of an object, in their order and as they are spelled, two of one name included: of two a child may take the
//! one or the other, so whoever must not be misled looks at both.

use std::borrow::Cow;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One member.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// Its name.
    pub(crate) name: Cow<'a, str>,
    /// The name as it is spelled, with its quotation marks.
    pub(crate) key: &'a str,
    /// Its value.
    pub(crate) value: &'a RawValue,
}

/// Looks at all members of an object, one by one; the error of what is no JSON, or no object.
pub(crate) fn each_member<'a>(object: &'a str, look: impl FnMut(Member<'a>)) -> Result<(), serde_json::Error> {
    struct Look<F>(F);
    impl<'de, F: FnMut(Member<'de>)> Visitor<'de> for Look<F> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<&'de RawValue>()? {
                let key = key.get();
                let name = unescaped(key).map_err(A::Error::custom)?;
                (self.0)(Member { name, key, value: map.next_value()? });
            }
            Ok(())
        }
    }
    let mut text = serde_json::Deserializer::from_str(object);
    text.deserialize_map(Look(look))?;
    text.end()
}

/// What a text in JSON says; without a copy where it says it plainly.
fn unescaped(text: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).filter(|inner| !inner.contains('\\')) {
        Some(plain) => Ok(Cow::Borrowed(plain)),
        None => serde_json::from_str(text).map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(object: &str) -> Result<Vec<(String, &str, &str)>, serde_json::Error> {
        let mut all = Vec::new();
        each_member(object, |member| all.push((member.name.into_owned(), member.key, member.value.get())))?;
        Ok(all)
    }

    #[test]
    fn members_come_in_order_as_they_are_spelled_two_of_one_name_included() {
        let members = all(r#" { "a" : [ 1 ] , "\u0061":1e400, "":{"b":null} } "#).expect("an object");
        let expected = [("a", r#""a""#, "[ 1 ]"), ("a", r#""\u0061""#, "1e400"), ("", r#""""#, r#"{"b":null}"#)];
        assert_eq!(members, expected.map(|(name, key, value)| (name.to_owned(), key, value)));
        assert_eq!(all("{}").expect("an object"), []);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["", "[1]", "7", "null", r#"{"a":1"#, r#"{"a":1} x"#, r#"{"\ud800":1}"#, "{\"a\n\":1}", "{a:1}"] {
            assert!(all(text).is_err(), "{text}");
        }
    }
}
