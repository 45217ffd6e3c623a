//! Serde's view of the tree: hands each type what it asks for, or says what stands there instead.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::fault::{Fault, FaultKind, shorten};
use super::node::{Entry, Kind, Node};
use super::problem::Step;
use super::scalar::{Meaning, meaning};
use super::suggest;

/// What a guess answers when it is asked for text, one after the other: something for most types that are written as text.
pub(super) const GUESSES: [&str; 5] = ["x", "1s", "127.0.0.1:1", "1/s", "1%"];

/// A node that serde reads from.
#[derive(Clone, Copy)]
pub(super) struct At<'a>(pub(super) &'a Node);

impl<'a> At<'a> {
    fn present(self) -> Result<&'a Kind, Fault> {
        if self.0.is_absent() {
            return Err(Fault::new(FaultKind::Absent));
        }
        Ok(&self.0.kind)
    }

    /// What stands here, in words.
    fn found(self) -> String {
        match &self.0.kind {
            Kind::Scalar { text, plain: false } => format!("the text \"{}\"", shorten(text)),
            Kind::Scalar { text, plain: true } => match meaning(text) {
                Meaning::Absent => "nothing".to_owned(),
                Meaning::Null => "null".to_owned(),
                Meaning::Bool(_) => format!("`{text}`"),
                Meaning::Text(text) => format!("the text `{}`", shorten(text)),
                _ => format!("the number {}", shorten(text)),
            },
            Kind::Sequence(_) => "a list".to_owned(),
            Kind::Mapping(_) => "a mapping".to_owned(),
            Kind::Guess(_) => "nothing".to_owned(),
        }
    }

    /// `expected … found …`, with the way out for what people write most.
    fn unlike(self, expected: impl Into<String>) -> Fault {
        let cure = match &self.0.kind {
            Kind::Scalar { text, plain: false }
                if matches!(
                    meaning(text),
                    Meaning::Bool(_)
                        | Meaning::Unsigned(_)
                        | Meaning::Signed(_)
                        | Meaning::Float(_)
                ) =>
            {
                "remove the quotes"
            }
            _ => "",
        };
        Fault::shape(expected, self.found(), cure)
    }

    /// Text asked for, but this is null or a collection: the type itself says what it wants.
    fn not_text<'de>(self, visitor: &impl Visitor<'de>) -> Fault {
        let found = match &self.0.kind {
            Kind::Sequence(_) => Unexpected::Seq,
            Kind::Mapping(_) => Unexpected::Map,
            _ => Unexpected::Unit,
        };
        Fault::invalid_type(found, visitor)
    }

    fn not_list(self) -> Fault {
        let cure = match &self.0.kind {
            Kind::Scalar { text, .. } => format!("write `[{}]`", shorten(text)),
            _ => "begin each item with `- `".to_owned(),
        };
        Fault::shape("a list", self.found(), cure)
    }

    fn not_mapping(self, known: &[&str]) -> Fault {
        let cure = if known.is_empty() {
            "write `key: value` lines".to_owned()
        } else {
            suggest::keys(known)
        };
        Fault::shape("a mapping", self.found(), cure)
    }
}

fn guess(number: usize) -> &'static str {
    GUESSES.get(number).copied().unwrap_or_default()
}

/// One method per width of number, so that the range in the words is the real one.
macro_rules! whole_numbers {
    ($($method:ident $type:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number: Option<$type> = match self.present()? {
                Kind::Guess(_) => Some(1),
                Kind::Scalar { text, plain: true } => match meaning(text) {
                    Meaning::Unsigned(number) => number.try_into().ok(),
                    Meaning::Signed(number) => number.try_into().ok(),
                    _ => None,
                },
                _ => None,
            };
            match number {
                Some(number) => visitor.$visit(number),
                None => Err(self.unlike(format!(
                    "a whole number from {} to {}", <$type>::MIN, <$type>::MAX
                ))),
            }
        }
    )*};
}

macro_rules! fractions {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.present()? {
                Kind::Guess(_) => return visitor.visit_f64(1.0),
                Kind::Scalar { text, plain: true } => match meaning(text) {
                    Meaning::Unsigned(number) => return visitor.visit_u64(number),
                    Meaning::Signed(number) => return visitor.visit_i64(number),
                    Meaning::Float(number) => return visitor.visit_f64(number),
                    _ => {}
                },
                _ => {}
            }
            Err(self.unlike("a number"))
        }
    )*};
}

impl<'de> Deserializer<'de> for At<'de> {
    type Error = Fault;

    whole_numbers! {
        deserialize_u8 u8, visit_u8;
        deserialize_u16 u16, visit_u16;
        deserialize_u32 u32, visit_u32;
        deserialize_u64 u64, visit_u64;
        deserialize_i8 i8, visit_i8;
        deserialize_i16 i16, visit_i16;
        deserialize_i32 i32, visit_i32;
        deserialize_i64 i64, visit_i64;
    }

    fractions! { deserialize_f32 deserialize_f64 }

    /// For types that take several forms (`untagged`): what is written decides.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Kind::Scalar { text, plain: true } => match meaning(text) {
                Meaning::Absent | Meaning::Null => visitor.visit_unit(),
                Meaning::Bool(value) => visitor.visit_bool(value),
                Meaning::Unsigned(number) => visitor.visit_u64(number),
                Meaning::Signed(number) => visitor.visit_i64(number),
                Meaning::Float(number) => visitor.visit_f64(number),
                Meaning::Text(text) => visitor.visit_borrowed_str(text),
            },
            Kind::Sequence(items) => visitor.visit_seq(Items::new(items)),
            Kind::Mapping(entries) => visitor.visit_map(Entries::new(entries)),
            Kind::Guess(number) => visitor.visit_str(guess(*number)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Guess(_) => return visitor.visit_bool(false),
            Kind::Scalar { text, plain } => {
                if *plain && let Meaning::Bool(value) = meaning(text) {
                    return visitor.visit_bool(value);
                }
                let cure = match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" | "y" | "1" => "write `true`, without quotes",
                    "false" | "no" | "off" | "n" | "0" => "write `false`, without quotes",
                    _ => "",
                };
                return Err(Fault::shape("`true` or `false`", self.found(), cure));
            }
            _ => {}
        }
        Err(self.unlike("`true` or `false`"))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Scalar { text, plain } if !(*plain && meaning(text) == Meaning::Null) => {
                visitor.visit_borrowed_str(text)
            }
            Kind::Guess(number) => visitor.visit_str(guess(*number)),
            _ => Err(self.not_text(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Guess(_) => visitor.visit_none(),
            Kind::Scalar { text, plain: true } if meaning(text) == Meaning::Null => {
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Guess(_) => visitor.visit_unit(),
            Kind::Scalar { text, plain: true } if meaning(text) == Meaning::Null => {
                visitor.visit_unit()
            }
            _ => Err(self.unlike("null")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Sequence(items) => visitor.visit_seq(Items::new(items)),
            Kind::Guess(_) => visitor.visit_seq(Items::new(&[])),
            _ => Err(self.not_list()),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Sequence(items) if items.len() > length => Err(Fault::shape(
                format!("a list of {length}"),
                format!("{} items", items.len()),
                format!("write {length} items"),
            )),
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.present()? {
            Kind::Mapping(entries) => visitor.visit_map(Entries::new(entries)),
            Kind::Guess(_) => visitor.visit_map(Entries::new(&[])),
            _ => Err(self.not_mapping(fields)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let one_of = || format!("one of {}", suggest::list(variants));
        match self.present()? {
            Kind::Scalar { text, .. } => visitor.visit_enum(Choice {
                name: text,
                value: None,
            }),
            Kind::Mapping(entries) => match entries.as_slice() {
                [entry] => visitor.visit_enum(Choice {
                    name: &entry.key,
                    value: Some(&entry.value),
                }),
                [] => Err(Fault::shape(one_of(), "an empty mapping", "")),
                more => {
                    let keys: Vec<_> = more
                        .iter()
                        .take(8)
                        .map(|entry| entry.key.as_str())
                        .collect();
                    Err(Fault::shape(
                        one_of(),
                        format!("{} keys: {}", more.len(), suggest::list(&keys)),
                        "keep one of them",
                    ))
                }
            },
            Kind::Guess(_) => match variants.first() {
                Some(first) => visitor.visit_enum(Choice {
                    name: first,
                    value: Some(self.0),
                }),
                None => Err(self.unlike(one_of())),
            },
            Kind::Sequence(_) => Err(Fault::shape(one_of(), self.found(), "")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

/// The items of a list, one by one.
struct Items<'a> {
    rest: std::slice::Iter<'a, (usize, Node)>,
}

impl<'a> Items<'a> {
    fn new(items: &'a [(usize, Node)]) -> Self {
        Self { rest: items.iter() }
    }
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((index, node)) = self.rest.next() else {
            return Ok(None);
        };
        seed.deserialize(At(node))
            .map(Some)
            .map_err(|fault| fault.under(Step::Index(*index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The entries of a mapping, one by one.
struct Entries<'a> {
    rest: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
}

impl<'a> Entries<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        Self {
            rest: entries.iter(),
            current: None,
        }
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        self.current = self.rest.next();
        let Some(entry) = self.current else {
            return Ok(None);
        };
        seed.deserialize(Key(&entry.key))
            .map(Some)
            .map_err(|fault| fault.on_key(&entry.key))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some(entry) = self.current.take() else {
            return Err(Fault::custom("a value was asked for before its key"));
        };
        seed.deserialize(At(&entry.value))
            .map_err(|fault| fault.under(Step::Key(entry.key.clone())))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// A key: text, whatever it looks like, unless the type asks for a number.
struct Key<'a>(&'a str);

macro_rules! number_keys {
    ($($method:ident $type:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.0.parse::<$type>() {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(Fault::shape(
                    format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX),
                    format!("the key `{}`", shorten(self.0)),
                    "",
                )),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Fault;

    number_keys! {
        deserialize_u8 u8, visit_u8;
        deserialize_u16 u16, visit_u16;
        deserialize_u32 u32, visit_u32;
        deserialize_u64 u64, visit_u64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let name: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        visitor.visit_enum(name)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

/// `variant`, or `variant: value`.
struct Choice<'a> {
    name: &'a str,
    value: Option<&'a Node>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        match seed.deserialize(name) {
            Ok(variant) => Ok((variant, self)),
            Err(fault) if self.value.is_some() => Err(fault.on_key(self.name)),
            Err(fault) => Err(fault),
        }
    }
}

impl<'de> Choice<'de> {
    fn value(self) -> Result<(At<'de>, &'de str), Fault> {
        match self.value {
            Some(value) => Ok((At(value), self.name)),
            None => {
                let name = shorten(self.name);
                Err(Fault::shape(
                    format!("a mapping with the key `{name}`"),
                    format!("`{name}` alone"),
                    format!("write `{name}: …`, on its own line or as `{{ {name}: … }}`"),
                ))
            }
        }
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.value.map(|value| &value.kind) {
            None | Some(Kind::Guess(_)) => Ok(()),
            Some(Kind::Mapping(entries)) if entries.is_empty() => Ok(()),
            Some(_) => {
                let name = shorten(self.name);
                Err(Fault::shape(
                    format!("`{name}` alone"),
                    "a value for it",
                    format!("write just `{name}`"),
                )
                .under(Step::Key(self.name.to_owned())))
            }
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let (value, name) = self.value()?;
        seed.deserialize(value)
            .map_err(|fault| inside(fault, value, name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Fault> {
        let (value, name) = self.value()?;
        value
            .deserialize_tuple(length, visitor)
            .map_err(|fault| inside(fault, value, name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let (value, name) = self.value()?;
        value
            .deserialize_struct("", fields, visitor)
            .map_err(|fault| inside(fault, value, name))
    }
}

/// A guess is its own variant's value: there is no step between the two.
fn inside(fault: Fault, value: At<'_>, name: &str) -> Fault {
    match value.0.kind {
        Kind::Guess(_) => fault,
        _ => fault.under(Step::Key(name.to_owned())),
    }
}
