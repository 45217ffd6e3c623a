//! Endpoints written down one by one: under `endpoints:` of the configuration, or in a file of their own.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use weft_runtime::config::{Path, Problems};

use crate::endpoint::place::Place;

/// One of `endpoints:`: `IP:PORT`, or a mapping that says more about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `IP:PORT`.
    Address(String),
    /// With its share, tier and zone.
    Place(Described),
}

/// An endpoint and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Endpoint")]
pub struct Described {
    /// `IP:PORT`.
    pub address: String,
    /// Its share within its tier; 0 takes no new exchanges while others do.
    #[serde(default = "one")]
    #[schemars(extend("format" = "uint"))]
    pub weight: u16,
    /// Its tier: a lower one is used first.
    #[serde(default)]
    #[schemars(extend("format" = "uint"))]
    pub priority: u16,
    /// The zone it runs in.
    #[serde(default)]
    pub zone: Option<String>,
}

fn one() -> u16 {
    1
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`IP:PORT`, or a mapping with `address`")
            }
            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Address(text.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
                Described::deserialize(MapAccessDeserializer::new(map)).map(Item::Place)
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl JsonSchema for Item {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Item".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let described = generator.subschema_for::<Described>();
        json_schema!({ "anyOf": [{ "type": "string" }, described] })
    }
}

/// Checks a list; `path` is where it stands. What is wrong with one keeps no other from being looked at.
pub fn build(items: &[Item], path: &Path, problems: &mut Problems) -> Option<Vec<Place>> {
    let before = problems.len();
    let mut places: Vec<Place> = Vec::new();
    let mut listed = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let at = path.index(index);
        let (text, at_address) = match item {
            Item::Address(text) => (text, at.clone()),
            Item::Place(described) => (&described.address, at.key("address")),
        };
        if let Item::Place(described) = item
            && described.zone.as_deref() == Some("")
        {
            problems.at(
                &at.key("zone"),
                "a zone without a name",
                "write its name, or remove `zone`",
            );
        }
        let mut wrong = |what: String, cure: &str| problems.at(&at_address, what, cure);
        let address = match text.parse::<SocketAddr>() {
            Ok(address) if !listed.insert(address) => {
                wrong(
                    format!("`{text}` is listed twice"),
                    "list each endpoint once",
                );
                continue;
            }
            Ok(address) if address.port() == 0 || address.ip().is_unspecified() => {
                wrong(
                    format!("nothing can be reached at `{text}`"),
                    "write the address and the port of an instance, such as `10.0.0.7:8080`",
                );
                continue;
            }
            Ok(address) => address,
            Err(_) => {
                wrong(
                    format!("`{text}` is not an address with a port"),
                    "write `IP:PORT`, such as `10.0.0.7:8080`; names belong in `dns`",
                );
                continue;
            }
        };
        let mut place = Place::new(address);
        if let Item::Place(described) = item {
            place.weight = described.weight;
            place.priority = described.priority;
            place.zone = described.zone.as_deref().map(Arc::from);
        }
        places.push(place);
    }
    (problems.len() == before).then_some(places)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use weft_runtime::config::Document;

    use super::*;

    fn read(text: &str) -> Result<Vec<Place>, String> {
        let document = Document::parse("list", text).unwrap();
        let mut problems = Problems::new();
        let places = document.check(&mut problems, |items: Vec<Item>, problems| {
            build(&items, &Path::root(), problems)
        });
        problems.locate(&document);
        places.ok_or_else(|| problems.render())
    }

    #[test]
    fn addresses_and_mappings_stand_side_by_side_in_yaml_and_json() {
        let one = Place::new("10.0.0.7:8080".parse().unwrap());
        let two = Place {
            weight: 3,
            priority: 1,
            zone: Some("a".into()),
            ..Place::new("[fd00::7]:8080".parse().unwrap())
        };
        for text in [
            "- 10.0.0.7:8080\n- { address: '[fd00::7]:8080', weight: 3, priority: 1, zone: a }\n",
            r#"["10.0.0.7:8080", {"address": "[fd00::7]:8080", "weight": 3, "priority": 1, "zone": "a"}]"#,
            "- { address: 10.0.0.7:8080 }\n- address: '[fd00::7]:8080'\n  weight: 3\n  priority: 1\n  zone: a\n",
        ] {
            assert_eq!(read(text).unwrap(), [one.clone(), two.clone()], "{text}");
        }
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn everything_that_is_wrong_is_said_in_its_place() {
        let check = |text: &str, words: &[&str]| {
            let problems = read(text).unwrap_err();
            for word in words {
                assert!(problems.contains(word), "{text}: {problems}");
            }
        };
        check(
            "- orders\n- 10.0.0.7\n- 0.0.0.0:80\n- 10.0.0.7:0\n",
            &[
                "list:1:3: `orders`",
                "list:2:3:",
                "list:3:3: nothing",
                "list:4:3: nothing",
            ],
        );
        check(
            "- 10.0.0.7:1\n- { address: 10.0.0.7:1, weight: 2 }",
            &["list:2:14", "twice"],
        );
        check(
            "- { address: x, zone: '' }",
            &["`x` is not", "without a name"],
        );
        check(
            "- { address: 10.0.0.7:1, wait: 2 }",
            &["list:1:26", "`wait`"],
        );
        check("- { weight: 2 }", &["`address`"]);
        check(
            "- { address: 10.0.0.7:1, weight: 70000 }",
            &["list:1:34", "65535"],
        );
        check("- 7\n", &["list:1:3"]);
        check("orders: 10.0.0.7:80\n", &["list:1:1"]);
    }
}
