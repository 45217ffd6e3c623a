//! Who may do what at a service: the `allow` rules.
//!
//! A service without `allow` is open to the whole mesh; with it everything that no rule allows is denied, callers without a
//! proven identity above all. An empty list allows nobody. A rule allows its `from` its `methods` on its `paths`; there is no
//! rule that denies, so the order of rules makes no difference.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use http::Method;
use schemars::JsonSchema;
use serde::Deserialize;
use weft_runtime::config::{Path, Problems, nearest};

use crate::error::Error;
use crate::path::{Pattern, method};
use crate::principal::SpiffeId;
use crate::reason::Reason;

/// One `allow` rule, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AllowRule")]
pub struct Config {
    /// The callers: names of services, or whole identities as `spiffe://…`.
    pub from: Vec<String>,
    /// The methods they may use; all when left out.
    #[serde(default)]
    pub methods: Option<Vec<String>>,
    /// The paths they may use them on, written as in routes: `/orders`, `/orders/*`, `/orders/{id}`; all when left out.
    #[serde(default)]
    pub paths: Option<Vec<String>>,
}

/// The checked rules of a service.
#[derive(Debug)]
pub struct Rules {
    service: Box<str>,
    /// What each identity may do; `None` when there are no rules.
    grants: Option<HashMap<Box<str>, Vec<Grant>, RandomState>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    /// Empty for all.
    methods: Vec<Method>,
    /// Empty for all.
    paths: Vec<Pattern>,
}

impl Rules {
    /// Builds the rules of `service`, which stand at `place` in the file. `identities` has the identity of every name
    /// that a rule may mention: the services, and the other programs of the mesh. Reports everything that is wrong;
    /// `None` when anything is.
    pub fn build(
        service: &str,
        place: &Path,
        rules: &[Config],
        identities: &BTreeMap<String, String>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.len();
        let mut grants: HashMap<Box<str>, Vec<Grant>, RandomState> = HashMap::default();
        for (index, rule) in rules.iter().enumerate() {
            let (path, place) = (place, place.index(index));
            if let Some(twin) = rules[..index].iter().position(|other| other == rule) {
                let twin = path.index(twin);
                problems.conflict(
                    &place,
                    &[&twin],
                    format!("this rule is the same as `{twin}`"),
                    "remove one of them",
                );
                continue;
            }
            let callers = check_callers(&rule.from, &place.key("from"), identities, problems);
            let grant = Grant {
                methods: check_list(
                    rule.methods.as_deref(),
                    &place.key("methods"),
                    "method",
                    method,
                    problems,
                ),
                paths: check_list(
                    rule.paths.as_deref(),
                    &place.key("paths"),
                    "path",
                    Pattern::parse,
                    problems,
                ),
            };
            for caller in callers {
                grants.entry(caller).or_default().push(grant.clone());
            }
        }
        (problems.len() == before).then(|| Self {
            service: service.into(),
            grants: (!rules.is_empty()).then_some(grants),
        })
    }

    /// The rules of a service as its file has them: left out, anybody may; an empty list lets nobody in.
    pub fn of(
        service: &str,
        place: &Path,
        allow: Option<&[Config]>,
        identities: &BTreeMap<String, String>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let rules = Self::build(
            service,
            place,
            allow.unwrap_or_default(),
            identities,
            problems,
        )?;
        let nobody = || allow.is_some().then(HashMap::default);
        Some(Self {
            grants: rules.grants.or_else(nobody),
            ..rules
        })
    }

    /// Whether `caller`, as its certificate proved it, may use `method` on the normal `path`.
    pub fn permit(
        &self,
        caller: Option<&SpiffeId>,
        method: &Method,
        path: &str,
    ) -> Result<(), Error> {
        let Some(grants) = &self.grants else {
            return Ok(());
        };
        let granted = caller.and_then(|caller| grants.get(caller.as_str()));
        if granted.is_some_and(|grants| grants.iter().any(|grant| grant.covers(method, path))) {
            return Ok(());
        }
        let service = &self.service;
        let detail = match (caller, granted) {
            (None, _) => format!(
                "a caller without a proven identity: {method} {path} matches no `allow` rule of service `{service}`"
            ),
            (Some(caller), None) => format!(
                "{caller}: {method} {path} matches no `allow` rule of service `{service}`; none is for this caller"
            ),
            (Some(caller), Some(_)) => format!(
                "{caller}: {method} {path} matches no `allow` rule of service `{service}`; those for this caller are \
                 for other methods or paths"
            ),
        };
        Err(Error::new(Reason::Denied, detail))
    }
}

impl Rules {
    /// Whether `caller` may open a connection whose contents nobody looks at: a rule that is only for some methods or
    /// paths does not say so.
    pub fn permit_connection(&self, caller: Option<&SpiffeId>) -> Result<(), Error> {
        let Some(grants) = &self.grants else {
            return Ok(());
        };
        let granted = caller.and_then(|caller| grants.get(caller.as_str()));
        if granted.is_some_and(|grants| grants.iter().any(Grant::covers_everything)) {
            return Ok(());
        }
        let service = &self.service;
        let caller = caller.map_or("a caller without a proven identity", SpiffeId::as_str);
        Err(Error::new(
            Reason::Denied,
            format!("{caller}: no `allow` rule of service `{service}` lets it open a connection"),
        ))
    }
}

impl Grant {
    fn covers_everything(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    fn covers(&self, method: &Method, path: &str) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(path)))
    }
}

fn check_callers(
    from: &[String],
    place: &Path,
    identities: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Vec<Box<str>> {
    if from.is_empty() {
        problems.at(
            place,
            "the list of callers is empty, so the rule can never match",
            "list the services that may call, or remove the rule",
        );
    }
    let mut callers: Vec<Box<str>> = Vec::with_capacity(from.len());
    for (index, text) in from.iter().enumerate() {
        let place = place.index(index);
        let caller = if text.starts_with("spiffe://") {
            if let Err(error) = text.parse::<SpiffeId>() {
                problems.at(
                    &place,
                    format!("no caller can have the identity `{text}`: {error}"),
                    "write it as in the caller's certificate, such as `spiffe://shop.internal/service/storefront`",
                );
                continue;
            }
            text
        } else if let Some(identity) = identities.get(text) {
            identity
        } else {
            let known: Vec<&str> = identities.keys().map(String::as_str).collect();
            let what = match nearest(text, &known) {
                Some(near) => format!("there is no service `{text}`, did you mean `{near}`?"),
                None => format!("there is no service `{text}`"),
            };
            problems.at(
                &place,
                what,
                format!(
                    "write one of `{}`, add the service under `services`, or write a whole identity, `spiffe://…`",
                    known.join("`, `")
                ),
            );
            continue;
        };
        if callers.iter().any(|other| **other == **caller) {
            problems.at(
                &place,
                format!("the caller `{text}` is listed twice"),
                "list it once",
            );
            continue;
        }
        callers.push(caller.as_str().into());
    }
    callers
}

/// The checked items of a list of which each allows something; a list that is there but empty allows nothing.
fn check_list<T: PartialEq>(
    list: Option<&[String]>,
    place: &Path,
    word: &str,
    parse: impl Fn(&str) -> Result<T, crate::path::Invalid>,
    problems: &mut Problems,
) -> Vec<T> {
    let Some(list) = list else {
        return Vec::new();
    };
    if list.is_empty() {
        problems.at(
            place,
            format!("the list of {word}s is empty, so the rule can never match"),
            format!("list at least one {word}, or leave `{word}s` out to match all"),
        );
    }
    let mut checked = Vec::with_capacity(list.len());
    for (index, text) in list.iter().enumerate() {
        let place = place.index(index);
        match parse(text) {
            Err(invalid) => problems.at(&place, invalid.what, invalid.cure),
            Ok(item) if checked.contains(&item) => problems.at(
                &place,
                format!("the {word} `{text}` is listed twice"),
                "list it once",
            ),
            Ok(item) => checked.push(item),
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rule(from: &[&str], methods: Option<&[&str]>, paths: Option<&[&str]>) -> Config {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Config {
            from: texts(from),
            methods: methods.map(texts),
            paths: paths.map(texts),
        }
    }

    #[test]
    fn a_list_that_is_left_out_lets_everybody_in_and_an_empty_one_nobody() {
        let caller: SpiffeId = "spiffe://shop.internal/service/storefront".parse().unwrap();
        for (allow, is_open) in [(None, true), (Some(&[][..]), false)] {
            let rules = Rules::of(
                "orders",
                &Path::root(),
                allow,
                &BTreeMap::new(),
                &mut Problems::new(),
            )
            .unwrap();
            for caller in [None, Some(&caller)] {
                let permitted = rules.permit(caller, &Method::GET, "/");
                assert_eq!(permitted.is_ok(), is_open, "{allow:?} {caller:?}");
            }
        }
    }

    fn build(rules: &[Config]) -> Result<Rules, Vec<String>> {
        let mut identities: BTreeMap<String, String> = ["storefront", "orders", "ingress"]
            .into_iter()
            .map(|name| {
                (
                    name.to_owned(),
                    format!("spiffe://shop.internal/service/{name}"),
                )
            })
            .collect();
        identities.insert(
            "legacy".to_owned(),
            "spiffe://old.internal/legacy".to_owned(),
        );
        let mut problems = Problems::new();
        let place = Path::root().key("services").key("orders").key("allow");
        let rules = Rules::build("orders", &place, rules, &identities, &mut problems);
        assert_eq!(rules.is_none(), !problems.is_empty());
        rules.ok_or_else(|| {
            problems
                .iter()
                .map(|problem| format!("{}: {} | {}", problem.path, problem.what, problem.cure))
                .collect()
        })
    }

    const STOREFRONT: Option<&str> = Some("spiffe://shop.internal/service/storefront");
    const INGRESS: Option<&str> = Some("spiffe://shop.internal/service/ingress");

    fn permit(
        rules: &Rules,
        caller: Option<&str>,
        method: &Method,
        path: &str,
    ) -> Result<(), Error> {
        let caller: Option<SpiffeId> = caller.map(|caller| caller.parse().unwrap());
        rules.permit(caller.as_ref(), method, path)
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let rules = build(&[]).unwrap();
        assert!(rules.permit(None, &Method::DELETE, "/anything").is_ok());
        assert!(permit(&rules, STOREFRONT, &Method::GET, "/").is_ok());
    }

    #[test]
    fn the_first_rule_denies_everything_else() {
        let rules = build(&[
            rule(
                &["storefront"],
                Some(&["GET", "POST"]),
                Some(&["/orders/*"]),
            ),
            rule(
                &["storefront", "ingress"],
                None,
                Some(&["/health", "/items/{id}"]),
            ),
            rule(&["legacy"], Some(&["GET"]), None),
            rule(&["spiffe://other.domain/ns/a/sa/b"], None, None),
        ])
        .unwrap();
        let check = |caller: Option<&str>, method: Method, path: &str, allowed: bool| {
            let permitted = permit(&rules, caller, &method, path);
            assert_eq!(permitted.is_ok(), allowed, "{caller:?} {method} {path}");
        };
        check(STOREFRONT, Method::GET, "/orders", true);
        check(STOREFRONT, Method::POST, "/orders/1/items", true);
        check(STOREFRONT, Method::DELETE, "/orders/1", false);
        check(STOREFRONT, Method::GET, "/ordersx", false);
        check(STOREFRONT, Method::GET, "/", false);
        check(STOREFRONT, Method::DELETE, "/health", true);
        check(STOREFRONT, Method::DELETE, "/items/7", true);
        check(STOREFRONT, Method::DELETE, "/items/", false);
        check(INGRESS, Method::GET, "/health", true);
        check(INGRESS, Method::GET, "/orders", false);
        check(
            Some("spiffe://old.internal/legacy"),
            Method::GET,
            "/x",
            true,
        );
        check(
            Some("spiffe://old.internal/legacy"),
            Method::PUT,
            "/x",
            false,
        );
        check(
            Some("spiffe://other.domain/ns/a/sa/b"),
            Method::PUT,
            "/x",
            true,
        );
        // The name of a service counts for its own trust domain only, and whole.
        check(
            Some("spiffe://other.domain/service/storefront"),
            Method::GET,
            "/orders",
            false,
        );
        check(
            Some("spiffe://shop.internal/service/storefrontx"),
            Method::GET,
            "/orders",
            false,
        );
        check(
            Some("spiffe://shop.internal/service/legacy"),
            Method::GET,
            "/x",
            false,
        );
        check(
            Some("spiffe://shop.internal/service/orders"),
            Method::GET,
            "/orders",
            false,
        );
        check(None, Method::GET, "/orders", false);
        check(None, Method::GET, "/health", false);
    }

    #[test]
    fn a_denial_says_who_what_and_why() {
        let rules = build(&[rule(&["storefront"], Some(&["GET"]), None)]).unwrap();
        let check = |caller: Option<&str>, words: &[&str]| {
            let error = permit(&rules, caller, &Method::POST, "/orders/1").unwrap_err();
            assert_eq!(error.reason, Reason::Denied);
            for word in words
                .iter()
                .chain(&["POST", "/orders/1", "service `orders`"])
            {
                assert!(error.detail.contains(word), "{error} should say {word}");
            }
        };
        check(
            STOREFRONT,
            &[
                "spiffe://shop.internal/service/storefront",
                "other methods or paths",
            ],
        );
        check(
            INGRESS,
            &[
                "spiffe://shop.internal/service/ingress",
                "none is for this caller",
            ],
        );
        check(None, &["without a proven identity"]);
    }

    #[test]
    fn rules_that_can_never_match_are_reported() {
        let check = |rules: &[Config], expected: &[&str]| {
            let problems = build(rules).unwrap_err();
            assert_eq!(problems.len(), expected.len(), "{problems:#?}");
            for (problem, expected) in problems.iter().zip(expected) {
                assert!(
                    problem.contains(expected),
                    "{problem} should say {expected}"
                );
            }
        };
        let some: &[&str] = &["storefront"];
        check(
            &[rule(&[], None, None)],
            &["allow[0].from: the list of callers is empty"],
        );
        check(
            &[rule(&["stroefront"], None, None)],
            &[
                "from[0]: there is no service `stroefront`, did you mean `storefront`? | write one of `ingress`",
            ],
        );
        check(
            &[rule(&["storefront", "storefront"], None, None)],
            &["from[1]: the caller `storefront` is listed twice"],
        );
        check(
            &[rule(
                &["storefront", "spiffe://shop.internal/service/storefront"],
                None,
                None,
            )],
            &["from[1]: the caller `spiffe://"],
        );
        check(
            &[rule(some, Some(&[]), Some(&[]))],
            &[
                "methods: the list of methods is empty",
                "paths: the list of paths is empty",
            ],
        );
        check(
            &[rule(some, Some(&["get"]), None)],
            &["methods[0]: the method `get`"],
        );
        check(
            &[rule(some, Some(&["GET", "GET"]), None)],
            &["methods[1]: the method `GET` is listed twice"],
        );
        check(
            &[rule(some, None, Some(&["orders"]))],
            &["paths[0]: the path `orders` has no leading slash"],
        );
        check(
            &[rule(some, None, Some(&["/a/{x}", "/a/{y}"]))],
            &["paths[1]: the path `/a/{y}` is listed twice"],
        );
        check(
            &[rule(some, None, None), rule(some, None, None)],
            &["allow[1]: this rule is the same as `services.orders.allow[0]`"],
        );
        for identity in [
            "spiffe://",
            "spiffe:///service/a",
            "spiffe://shop.internal",
            "spiffe://shop.internal/",
            "spiffe://Shop.internal/a",
            "spiffe://shop.internal:80/a",
            "spiffe://shop.internal/a/",
            "spiffe://shop.internal/a//b",
            "spiffe://shop.internal/../a",
            "spiffe://shop.internal/a?b",
            "spiffe://shop.internal/a%20b",
            "spiffe://user@shop.internal/a",
        ] {
            check(
                &[rule(&[identity], None, None)],
                &["no caller can have the identity"],
            );
        }
    }

    #[test]
    fn a_rule_refuses_unknown_keys_and_demands_callers() {
        let refused = |json: &str, word: &str| {
            let error = serde_json::from_str::<Config>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(
            r#"{"from": ["a"], "method": ["GET"]}"#,
            "unknown field `method`",
        );
        refused(r#"{"methods": ["GET"]}"#, "missing field `from`");
    }
}
