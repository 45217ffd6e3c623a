//! Maps of fields to be used again. The two allocations of a new map, and giving them back, cost as much as reading a short
//! head does, and each exchange needs two maps.

use std::cell::RefCell;

use http::HeaderMap;

/// Kept per thread at most: as many exchanges as begin and end in one turn of a busy core.
const MOST: usize = 64;
/// Fields that a map which is kept has room for at most: what one large head needed is not held for ever.
const LARGEST: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for so many fields.
pub(crate) fn take(fields: usize) -> HeaderMap {
    match FREE.with_borrow_mut(Vec::pop) {
        Some(mut map) => {
            map.reserve(fields);
            map
        }
        None => HeaderMap::with_capacity(fields),
    }
}

/// Takes back a map that nobody needs any more, with whatever is in it.
pub(crate) fn put(mut map: HeaderMap) {
    // What a name has beyond its first line lies elsewhere, and only the number of all tells of it.
    if (1..=LARGEST).contains(&map.capacity()) && map.len() <= LARGEST {
        map.clear();
        FREE.with_borrow_mut(|free| {
            if free.len() < MOST {
                free.push(map);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::ACCEPT;

    use super::*;

    fn kept() -> usize {
        FREE.with_borrow(Vec::len)
    }

    #[test]
    fn a_map_comes_back_empty() {
        let mut map = take(3);
        map.append(ACCEPT, HeaderValue::from_static("a"));
        map.append(ACCEPT, HeaderValue::from_static("b"));
        put(map);
        assert_eq!(kept(), 1);
        let again = take(40);
        assert!(again.is_empty() && again.capacity() >= 40);
        assert_eq!(kept(), 0, "the same one");
    }

    #[test]
    fn neither_many_nor_large_ones_are_kept() {
        put(HeaderMap::new());
        put(HeaderMap::with_capacity(LARGEST * 2));
        let mut long = HeaderMap::with_capacity(1);
        for _ in 0..=LARGEST {
            long.append(ACCEPT, HeaderValue::from_static("a"));
        }
        put(long);
        assert_eq!(kept(), 0);
        for _ in 0..MOST * 2 {
            put(HeaderMap::with_capacity(1));
        }
        assert_eq!(kept(), MOST);
    }
}
