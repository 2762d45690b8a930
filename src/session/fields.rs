//! A JSON object as the ordered list of its fields, their values untouched: what was not
//! understood is passed on to the letter. Pure.

use std::{borrow::Cow, fmt};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The fields of an object, in their order.
#[derive(Debug)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Reads an object. None for everything else.
    #[must_use]
    pub fn parse(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The raw value of a field. Where a field stands twice, the last one counts.
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.get())
    }

    /// The value of a field, if it is there and of that type.
    #[must_use]
    pub fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// Name and raw value of each field.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (&**key, value.get()))
    }

    /// The object with some fields replaced, added (`Some`) or removed (`None`).
    #[must_use]
    pub fn with(&self, changes: &[(&str, Option<&[u8]>)]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(b'{');
        let kept = self.iter().filter(|(key, _)| changes.iter().all(|(name, _)| name != key));
        let added = changes.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        let all = added.chain(kept.map(|(key, value)| (key, value.as_bytes())));
        for (n, (key, value)) in all.enumerate() {
            if n > 0 {
                out.put_u8(b',');
            }
            out.put_slice(serde_json::Value::from(key).to_string().as_bytes());
            out.put_u8(b':');
            out.put_slice(value);
        }
        out.put_u8(b'}');
        out.freeze()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;

        impl<'de> Visitor<'de> for Ordered {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(Name(key)) = map.next_key()? {
                    fields.push((key, map.next_value()?));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Ordered).map(Self)
    }
}

/// A key, borrowed where it holds no escape.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_passed_on_to_the_letter_but_for_what_is_changed() {
        let json = br#"{"b":1e15,"a":{"z":1, "y":[2]},"stream":false,"n":12345678901234567890123}"#;
        let fields = Fields::parse(json).unwrap();
        let out =
            fields.with(&[("stream", Some(b"true")), ("gone", None), ("type", Some(b"\"t\""))]);
        assert_eq!(
            out,
            &br#"{"stream":true,"type":"t","b":1e15,"a":{"z":1, "y":[2]},"n":12345678901234567890123}"#[..]
        );
        assert_eq!(fields.get::<bool>("stream"), Some(false));
        assert_eq!(fields.get::<bool>("b"), None);
        assert!(Fields::parse(b"[1]").is_none());
        assert_eq!(Fields::parse(b"{}").unwrap().with(&[]), "{}");
    }
}
