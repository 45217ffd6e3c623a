//! The table against the rules: cases by hand, and random tables against a naive reading of the precedence.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft_runtime::config::{Path, Problems};

use super::{Match, Table};

fn matching(host: &str, path: &str, methods: &[&str], headers: &[(&str, &str)]) -> Match {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Match {
        host: some(host),
        path: some(path),
        methods: (!methods.is_empty()).then(|| methods.iter().map(ToString::to_string).collect()),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
    }
}

fn place(index: usize) -> Path {
    Path::root().key("routes").index(index).key("match")
}

fn build(matches: &[Match]) -> Result<Table<usize>, Vec<String>> {
    let places: Vec<_> = (0..matches.len()).map(place).collect();
    let routes = places
        .iter()
        .zip(matches)
        .enumerate()
        .map(|(index, (place, matching))| (place, matching, index))
        .collect();
    let mut problems = Problems::new();
    let table = Table::build(routes, &mut problems);
    assert_eq!(table.is_none(), !problems.is_empty());
    table.ok_or_else(|| {
        problems
            .iter()
            .map(|problem| format!("{}: {} | {}", problem.path, problem.what, problem.cure))
            .collect()
    })
}

fn find(table: &Table<usize>, method: &str, url: &str, headers: &[(&str, &str)]) -> Option<usize> {
    let (host, path) = url.split_at(url.find(['/', '*']).unwrap());
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::try_from(*value).unwrap(),
            )
        })
        .collect();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    table.find_parts(host, path, &method, &headers).copied()
}

#[test]
fn the_host_decides_before_the_path() {
    let table = build(&[
        matching("", "/orders/1", &[], &[]),
        matching("*.example.com", "/orders/1", &[], &[]),
        matching("*.shop.example.com", "/*", &[], &[]),
        matching("api.shop.example.com", "/orders/*", &[], &[]),
    ])
    .unwrap();
    let check = |url: &str, expected: Option<usize>| {
        assert_eq!(find(&table, "GET", url, &[]), expected, "{url}");
    };
    check("api.shop.example.com/orders/1", Some(3));
    check("API.Shop.Example.COM/orders/1", Some(3));
    check("api.shop.example.com./orders/1", Some(3));
    // The exact host has no route for this path: the next best host that has one.
    check("api.shop.example.com/other", Some(2));
    check("www.shop.example.com/orders/1", Some(2));
    check("a.b.shop.example.com/x", Some(2));
    check("shop.example.com/orders/1", Some(1));
    check("example.com/orders/1", Some(0));
    check(".example.com/orders/1", Some(0));
    check("shop.example.com/orders/2", None);
    check("other.test/orders/1", Some(0));
    check("[::1]/orders/1", Some(0));
    check("/orders/1", Some(0));
}

#[test]
fn the_more_specific_path_wins_whatever_the_order() {
    let table = build(&[
        matching("", "/*", &[], &[]),
        matching("", "/orders/*", &[], &[]),
        matching("", "/orders/{id}", &[], &[]),
        matching("", "/orders/{id}/items", &[], &[]),
        matching("", "/orders/latest", &[], &[]),
        matching("", "/orders", &[], &[]),
        matching("", "/orders/latest/*", &[], &[]),
        matching("", "/{any}/latest", &[], &[]),
        matching("", "/", &[], &[]),
    ])
    .unwrap();
    let check = |path: &str, expected: usize| {
        assert_eq!(find(&table, "GET", path, &[]), Some(expected), "{path}");
    };
    check("/", 8);
    check("/x", 0);
    check("*", 0);
    check("/orders", 5);
    check("/orders/", 1);
    check("/ordersx", 0);
    check("/orders/1", 2);
    check("/orders/1/items", 3);
    check("/orders/1/other", 1);
    check("/orders/latest", 4);
    check("/orders/latest/items", 6);
    check("/users/latest", 7);
    check("/users/latest/", 0);
}

#[test]
fn then_methods_then_headers_then_the_order_of_the_file() {
    let table = build(&[
        matching("", "/a", &[], &[("x-beta", "1"), ("x-eu", "1")]),
        matching("", "/a", &["GET"], &[]),
        matching("", "/a", &[], &[("x-beta", "1")]),
        matching("", "/a", &["GET", "POST"], &[("x-beta", "1")]),
        matching("", "/a", &["POST"], &[("x-eu", "1")]),
        matching("", "/a", &[], &[]),
    ])
    .unwrap();
    let check = |method: &str, headers: &[(&str, &str)], expected: usize| {
        let found = find(&table, method, "/a", headers);
        assert_eq!(found, Some(expected), "{method} {headers:?}");
    };
    let (beta, eu) = (("x-beta", "1"), ("x-eu", "1"));
    check("GET", &[], 1);
    check("GET", &[beta], 3);
    check("POST", &[beta, eu], 3);
    check("POST", &[eu], 4);
    check("PUT", &[beta, eu], 0);
    check("PUT", &[beta], 2);
    check("PUT", &[("x-beta", "2")], 5);
    check("PUT", &[("x-beta", "2"), beta], 2);
    check("get", &[], 5);
    check("POST", &[], 5);
}

#[test]
fn what_can_never_match_is_reported_with_its_place_and_a_way_out() {
    let check = |matches: &[Match], expected: &[&str]| {
        let problems = build(matches).unwrap_err();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(
                problem.contains(expected),
                "{problem} should say {expected}"
            );
        }
    };
    let any = |path: &str| matching("", path, &[], &[]);
    check(
        &[any("/a"), any("/b"), any("/a")],
        &["routes[2].match: this match is the same as `routes[0].match`"],
    );
    check(&[any(""), any("/*")], &["same as `routes[0].match`"]);
    check(&[any("/{a}/x"), any("/{b}/x")], &["same as"]);
    check(
        &[
            matching("a.test", "", &[], &[]),
            matching("A.TEST.", "", &[], &[]),
        ],
        &["same as"],
    );
    check(
        &[
            matching("", "/a", &["POST", "GET"], &[]),
            matching("", "/a", &["GET", "POST"], &[]),
        ],
        &["same as"],
    );
    check(
        &[
            matching("", "/a", &["POST", "GET"], &[]),
            matching("", "/a", &["GET"], &[]),
        ],
        &["`routes[0].match` with the same host, path and headers comes first"],
    );
    check(
        &[
            matching("", "/a", &["POST"], &[]),
            matching("", "/a", &["GET", "PUT"], &[]),
            matching("", "/a", &["DELETE"], &[]),
            matching("", "/a", &["POST", "GET"], &[]),
        ],
        &[
            "`routes[0].match` and `routes[1].match` with the same host, path and headers come first",
        ],
    );
    check(
        &[Match {
            methods: Some(vec![]),
            ..any("/a")
        }],
        &["routes[0].match.methods: the list of methods is empty"],
    );
    check(
        &[matching("", "/a", &["get"], &[])],
        &["match.methods[0]: the method `get`"],
    );
    check(
        &[matching("", "/a", &["GET", "GET"], &[])],
        &["methods[1]: the method `GET` is listed twice"],
    );
    check(&[matching("", "/a", &["G ET"], &[])], &["not a method"]);
    check(
        &[matching("a:80", "a", &[], &[])],
        &["match.host: ", "match.path: "],
    );
    check(
        &[matching("", "", &[], &[("host", "x")])],
        &["match.headers.host: "],
    );
    check(
        &[matching("", "", &[], &[("Connection", "x")])],
        &["belongs to the connection"],
    );
    check(
        &[matching("", "", &[], &[("x y", "x")])],
        &["not the name of a header"],
    );
    check(&[matching("", "", &[], &[("x", " y")])], &["write `y`"]);
    check(
        &[matching("", "", &[], &[("x", "a\nb")])],
        &["cannot be the value"],
    );
    check(
        &[matching("", "", &[], &[("x-a", "1"), ("X-A", "1")])],
        &["listed twice"],
    );
}

#[test]
fn routes_that_overlap_without_hiding_one_another_are_fine() {
    assert!(
        build(&[
            matching("", "/a", &["GET"], &[]),
            matching("", "/a", &["GET", "POST"], &[]),
            matching("", "/a", &["GET"], &[("x", "1")]),
            matching("", "/a", &["GET"], &[("x", "2")]),
            matching("", "/a", &[], &[]),
            matching("", "/a/*", &["GET"], &[]),
            matching("", "/{x}", &["GET"], &[]),
            matching("b.test", "/a", &["GET"], &[]),
        ])
        .is_ok()
    );
    assert!(build(&[]).is_ok());
}

#[test]
fn a_match_refuses_unknown_keys() {
    let error = serde_json::from_str::<Match>(r#"{"path": "/a", "rout": 1}"#).unwrap_err();
    assert!(
        error.to_string().contains("unknown field `rout`"),
        "{error}"
    );
    let whole: Match = serde_json::from_str(
        r#"{"host": "a", "path": "/a", "methods": ["GET"], "headers": {"x": "1"}}"#,
    )
    .unwrap();
    assert_eq!(whole, matching("a", "/a", &["GET"], &[("x", "1")]));
}

/// The precedence as the module's documentation says it, with nothing clever.
mod naive {
    use super::*;

    type Rank = ((u8, usize), Vec<u8>, bool, usize, usize);

    pub(super) fn find(
        routes: &[Match],
        host: &str,
        path: &str,
        method: &str,
        headers: &BTreeMap<String, String>,
    ) -> Option<usize> {
        (0..routes.len())
            .filter_map(|index| rank(&routes[index], index, host, path, method, headers))
            .min()
            .map(|rank| rank.4)
    }

    fn rank(
        route: &Match,
        index: usize,
        host: &str,
        path: &str,
        method: &str,
        headers: &BTreeMap<String, String>,
    ) -> Option<Rank> {
        let host_rank = match route.host.as_deref() {
            None => (2, 0),
            Some(wanted) => match wanted.strip_prefix('*') {
                Some(suffix) => {
                    let fits = host.ends_with(suffix) && host.len() > suffix.len();
                    fits.then(|| (1, usize::MAX - suffix.len()))?
                }
                None => (host == wanted).then_some((0, 0))?,
            },
        };
        let path_rank = path_rank(route.path.as_deref().unwrap_or("/*"), path)?;
        if let Some(methods) = &route.methods
            && !methods.iter().any(|wanted| wanted == method)
        {
            return None;
        }
        if !route
            .headers
            .iter()
            .all(|(name, value)| headers.get(name) == Some(value))
        {
            return None;
        }
        Some((
            host_rank,
            path_rank,
            route.methods.is_none(),
            usize::MAX - route.headers.len(),
            index,
        ))
    }

    /// One number a segment, the smaller the more specific.
    fn path_rank(pattern: &str, path: &str) -> Option<Vec<u8>> {
        let (literal, parameter, rest) = (0, 1, 2);
        let mut rank = Vec::new();
        let mut given = path[1..].split('/');
        for segment in pattern[1..].split('/') {
            let next = given.next();
            if segment == "*" {
                rank.push(rest);
                return Some(rank);
            }
            let next = next?;
            if segment.starts_with('{') {
                if next.is_empty() {
                    return None;
                }
                rank.push(parameter);
            } else if segment == next {
                rank.push(literal);
            } else {
                return None;
            }
        }
        given.next().is_none().then_some(rank)
    }
}

#[test]
fn the_table_agrees_with_a_naive_reading_of_the_precedence() {
    const HOSTS: &[&str] = &[
        "",
        "",
        "a.test",
        "b.a.test",
        "*.test",
        "*.a.test",
        "*.b.a.test",
    ];
    const SEGMENTS: &[&str] = &["a", "b", "{p}", "{p}", "c"];
    const METHODS: &[&[&str]] = &[&[], &[], &["GET"], &["POST"], &["GET", "POST"]];
    const ASKED_HOSTS: &[&str] = &["a.test", "b.a.test", "c.b.a.test", "test", "x.test", "x.y"];
    const ASKED_SEGMENTS: &[&str] = &["a", "b", "c", "d"];
    let mut random = fastrand::Rng::with_seed(23);
    let pick = |random: &mut fastrand::Rng, list: &[&'static str]| list[random.usize(..list.len())];
    let (mut found, mut missed) = (0, 0);
    for _ in 0..400 {
        let mut routes: Vec<Match> = Vec::new();
        for _ in 0..random.usize(1..40) {
            let depth = random.usize(0..4);
            let mut path: String = (0..depth)
                .enumerate()
                .map(|(index, _)| match pick(&mut random, SEGMENTS) {
                    "{p}" => format!("/{{p{index}}}"),
                    literal => format!("/{literal}"),
                })
                .collect();
            match random.u8(..4) {
                0 | 1 => path.push_str("/*"),
                2 => path.push('/'),
                _ if depth == 0 => path.push('/'),
                _ => {}
            }
            let mut headers = Vec::new();
            for name in ["x-a", "x-b"] {
                if random.u8(..4) == 0 {
                    headers.push((name, if random.bool() { "1" } else { "2" }));
                }
            }
            let methods = METHODS[random.usize(..METHODS.len())];
            routes.push(matching(pick(&mut random, HOSTS), &path, methods, &headers));
            // What the checks refuse is not what this test is about.
            if build(&routes).is_err() {
                routes.pop();
            }
        }
        let table = build(&routes).unwrap();
        for _ in 0..200 {
            let host = pick(&mut random, ASKED_HOSTS);
            let mut path: String = (0..random.usize(0..5))
                .map(|_| format!("/{}", pick(&mut random, ASKED_SEGMENTS)))
                .collect();
            if path.is_empty() || random.u8(..4) == 0 {
                path.push('/');
            }
            let method = pick(&mut random, &["GET", "POST", "PUT"]);
            let mut headers = BTreeMap::new();
            for name in ["x-a", "x-b"] {
                if random.bool() {
                    let value = if random.bool() { "1" } else { "2" };
                    headers.insert(name.to_owned(), value.to_owned());
                }
            }
            let expected = naive::find(&routes, host, &path, method, &headers);
            let asked: Vec<_> = headers
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect();
            let actual = find(&table, method, &format!("{host}{path}"), &asked);
            assert_eq!(
                actual, expected,
                "{method} {host}{path} {headers:?} in {routes:#?}"
            );
            *(if actual.is_some() {
                &mut found
            } else {
                &mut missed
            }) += 1;
        }
    }
    assert!(
        found > 10_000 && missed > 10_000,
        "{found} found, {missed} missed"
    );
}

/// Not a measurement: a linear scan looks at every route and fails this by a factor of ten.
#[test]
fn a_thousand_routes_cost_about_as_much_as_ten() {
    let time = |count: usize| {
        let routes: Vec<_> = (0..count)
            .map(|index| {
                matching(
                    &format!("h{}.test", index % 7),
                    &format!("/service/{index}/*"),
                    &[],
                    &[],
                )
            })
            .collect();
        let table = build(&routes).unwrap();
        let headers = HeaderMap::new();
        let asked: Vec<_> = (0..10)
            .map(|index| {
                let index = index * count / 10;
                (
                    format!("h{}.test", index % 7),
                    format!("/service/{index}/items/1"),
                    index,
                )
            })
            .collect();
        (0..7)
            .map(|_| {
                let start = std::time::Instant::now();
                for _ in 0..2_000 {
                    for (host, path, index) in &asked {
                        let found = table.find_parts(host, path, &Method::GET, &headers);
                        assert_eq!(found, Some(index));
                    }
                }
                start.elapsed()
            })
            .min()
            .unwrap()
    };
    let (ten, thousand) = (time(10), time(1_000));
    assert!(
        thousand < ten * 8,
        "10 routes: {ten:?}, 1,000 routes: {thousand:?}"
    );
}
