//! Messages and what has to become of each: the table that the tests of this module share.
//!
//! What is accepted is told in one line, the framing and connection first, then the fields that are left. What is
//! refused names the rule. The same messages are seeds for mutation and are given to hyper for comparison.

use bytes::Bytes;
use http::{HeaderMap, Method, Version};

use super::parse::{Framing, Request, Response, Upgrade};

/// What has to become of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Accepted and told like this.
    Is(&'static str),
    /// Refused by this rule.
    Not(&'static str),
    /// Accepted, whatever it says.
    Fine,
    /// Refused, by whichever rule comes first.
    Bad,
}

use Want::{Bad, Fine, Is, Not};

/// A request and its verdict.
#[derive(Debug, Clone)]
pub(super) struct RequestCase {
    pub(super) bytes: Bytes,
    pub(super) want: Want,
}

/// A response, what it answers, and its verdict.
#[derive(Debug, Clone)]
pub(super) struct ResponseCase {
    pub(super) method: Method,
    pub(super) asked_upgrade: bool,
    pub(super) bytes: Bytes,
    pub(super) want: Want,
}

/// Start lines, before `host: a` and an empty line.
#[rustfmt::skip] // a row a line
const LINES: &[(&str, Want)] = &[
    ("GET / HTTP/1.1\r\n", Is("GET a / 1.1 none keep")),
    ("GET / HTTP/1.0\r\n", Is("GET a / 1.0 none close")),
    ("HEAD /x HTTP/1.1\r\n", Is("HEAD a /x 1.1 none keep")),
    ("POST / HTTP/1.1\r\n", Is("POST a / 1.1 none keep")),
    ("DELETE /1 HTTP/1.1\r\n", Is("DELETE a /1 1.1 none keep")),
    ("TRACE / HTTP/1.1\r\n", Is("TRACE a / 1.1 none keep")),
    ("PROPFIND / HTTP/1.1\r\n", Is("PROPFIND a / 1.1 none keep")),
    ("get / HTTP/1.1\r\n", Is("get a / 1.1 none keep")),
    ("!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\n", Is("!#$%&'*+-.^_`|~09azAZ a / 1.1 none keep")),
    ("OPTIONS * HTTP/1.1\r\n", Is("OPTIONS a * 1.1 none keep")),
    ("OPTIONS / HTTP/1.1\r\n", Is("OPTIONS a / 1.1 none keep")),
    ("\r\nGET / HTTP/1.1\r\n", Is("GET a / 1.1 none keep")),
    ("GET //x HTTP/1.1\r\n", Is("GET a //x 1.1 none keep")),
    ("GET /a/../b HTTP/1.1\r\n", Is("GET a /a/../b 1.1 none keep")),
    ("GET /?q HTTP/1.1\r\n", Is("GET a /?q 1.1 none keep")),
    ("GET /? HTTP/1.1\r\n", Is("GET a /? 1.1 none keep")),
    ("GET /%41%2f%00 HTTP/1.1\r\n", Is("GET a /%41%2f%00 1.1 none keep")),
    ("GET /a;b=c,d:e@f!$&'()*+ HTTP/1.1\r\n", Is("GET a /a;b=c,d:e@f!$&'()*+ 1.1 none keep")),
    ("GET /[x]{y}|^~ HTTP/1.1\r\n", Is("GET a /[x]{y}|^~ 1.1 none keep")),
    ("GET /?off=100%&a[]={b}|\\^` HTTP/1.1\r\n", Is("GET a /?off=100%&a[]={b}|\\^` 1.1 none keep")),
    ("GET /?a?b/c HTTP/1.1\r\n", Is("GET a /?a?b/c 1.1 none keep")),
    ("GET http://b/x HTTP/1.1\r\n", Is("GET b /x 1.1 none keep")),
    ("GET http://b:81 HTTP/1.1\r\n", Is("GET b:81 / 1.1 none keep")),
    ("GET http://b?q HTTP/1.1\r\n", Is("GET b /?q 1.1 none keep")),
    ("GET HTTPS://B/ HTTP/1.1\r\n", Is("GET B / 1.1 none keep")),
    ("GET https://[::1]:8443/x?y HTTP/1.1\r\n", Is("GET [::1]:8443 /x?y 1.1 none keep")),
    ("OPTIONS http://b HTTP/1.1\r\n", Is("OPTIONS b * 1.1 none keep")),
    ("OPTIONS http://b/ HTTP/1.1\r\n", Is("OPTIONS b / 1.1 none keep")),
    ("CONNECT b:443 HTTP/1.1\r\n", Not("connect is not forwarded")),
    ("CONNECT / HTTP/1.1\r\n", Not("connect is not forwarded")),
    ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\n", Not("method too long")),
    ("GET * HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("OPTIONS ** HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET x HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET ?q HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET b:80 HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET ftp://b/ HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET http:/b/ HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET http:b HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET unix:/x HTTP/1.1\r\n", Not("request target is neither a path nor an http URI")),
    ("GET http:///x HTTP/1.1\r\n", Not("empty host")),
    ("GET http:// HTTP/1.1\r\n", Not("empty host")),
    ("GET http://?x HTTP/1.1\r\n", Not("empty host")),
    ("GET http://:80/ HTTP/1.1\r\n", Not("empty host")),
    ("GET http://u@b/ HTTP/1.1\r\n", Not("malformed host")),
    ("GET http://u:p@b/ HTTP/1.1\r\n", Not("malformed port in the host")),
    ("GET http://b:99999/ HTTP/1.1\r\n", Not("malformed port in the host")),
    ("GET http://b\\@c/ HTTP/1.1\r\n", Not("malformed host")),
    ("GET http://b/x#f HTTP/1.1\r\n", Not("fragment in the request target")),
    ("GET http://b#f HTTP/1.1\r\n", Not("fragment in the request target")),
    ("GET /x#f HTTP/1.1\r\n", Not("fragment in the request target")),
    ("GET /?x#f HTTP/1.1\r\n", Not("fragment in the request target")),
    ("GET /% HTTP/1.1\r\n", Not("malformed percent-encoding in the path")),
    ("GET /%4 HTTP/1.1\r\n", Not("malformed percent-encoding in the path")),
    ("GET /%4?1 HTTP/1.1\r\n", Not("malformed percent-encoding in the path")),
    ("GET /%zz HTTP/1.1\r\n", Not("malformed percent-encoding in the path")),
    ("GET /%u0041 HTTP/1.1\r\n", Not("malformed percent-encoding in the path")),
    ("GET /a\\..\\b HTTP/1.1\r\n", Not("byte in the path that must be encoded")),
    ("GET /\"x\" HTTP/1.1\r\n", Not("byte in the path that must be encoded")),
    ("GET /<x> HTTP/1.1\r\n", Not("byte in the path that must be encoded")),
    ("GET /`x` HTTP/1.1\r\n", Not("byte in the path that must be encoded")),
    ("GET /\u{e9} HTTP/1.1\r\n", Not("byte beyond ASCII in the request line")),
    ("GET /?\u{e9} HTTP/1.1\r\n", Not("byte beyond ASCII in the request line")),
    ("GET /?\"x\" HTTP/1.1\r\n", Not("byte in the query that must be encoded")),
    ("GET /?<x> HTTP/1.1\r\n", Not("byte in the query that must be encoded")),
    ("GET /x\0y HTTP/1.1\r\n", Not("null byte")),
    ("GET /x\x01y HTTP/1.1\r\n", Not("control byte")),
    ("GET /x\x7fy HTTP/1.1\r\n", Not("control byte")),
    ("GET /x\ry HTTP/1.1\r\n", Not("carriage return without line feed")),
    ("GET  / HTTP/1.1\r\n", Not("more than one space in the request line")),
    ("GET /  HTTP/1.1\r\n", Not("more than one space in the request line")),
    ("GET / HTTP/1.1 \r\n", Not("more than one space in the request line")),
    ("GET /a b HTTP/1.1\r\n", Not("more than one space in the request line")),
    (" GET / HTTP/1.1\r\n", Not("space before the method")),
    ("\tGET / HTTP/1.1\r\n", Not("tab in the request line")),
    ("GET\t/ HTTP/1.1\r\n", Not("tab in the request line")),
    ("GET /\tHTTP/1.1\r\n", Not("tab in the request line")),
    ("GET / HTTP/1.1\t\r\n", Not("tab in the request line")),
    ("GET\x0b/ HTTP/1.1\r\n", Not("control byte")),
    ("GET / HTTP/1.1\n", Not("line feed without carriage return")),
    ("GET / HTTP/1.1\r", Not("carriage return without line feed")),
    ("GET / HTTP/1.1\r\r\n", Not("carriage return without line feed")),
    ("GET / HTTP/1.1\n\r\n", Not("line feed without carriage return")),
    ("\r\n\r\nGET / HTTP/1.1\r\n", Not("more than one empty line before the request")),
    ("\r\n\nGET / HTTP/1.1\r\n", Not("more than one empty line before the request")),
    ("\nGET / HTTP/1.1\r\n", Not("line feed without carriage return")),
    ("\rGET / HTTP/1.1\r\n", Not("carriage return without line feed")),
    ("\r\n GET / HTTP/1.1\r\n", Not("space before the method")),
    ("GET /\r\n", Not("request line without a version")),
    ("GET\r\n", Not("request line without a version")),
    ("GET / \r\n", Not("more than one space in the request line")),
    ("GET / HTTP/0.9\r\n", Not("version other than 1.0 and 1.1")),
    ("GET / HTTP/1.2\r\n", Not("version other than 1.0 and 1.1")),
    ("GET / HTTP/2.0\r\n", Not("version other than 1.0 and 1.1")),
    ("PRI * HTTP/2.0\r\n", Not("version other than 1.0 and 1.1")),
    ("GET / HTTP/9.9\r\n", Not("version other than 1.0 and 1.1")),
    ("GET / HTTP/2\r\n", Not("malformed version")),
    ("GET / HTTP/1\r\n", Not("malformed version")),
    ("GET / HTTP/1.\r\n", Not("malformed version")),
    ("GET / HTTP/1.10\r\n", Not("malformed version")),
    ("GET / HTTP/01.1\r\n", Not("malformed version")),
    ("GET / HTTP/+1.1\r\n", Not("malformed version")),
    ("GET / http/1.1\r\n", Not("malformed version")),
    ("GET / HTTPS/1.1\r\n", Not("malformed version")),
    ("GET / HTTP /1.1\r\n", Not("more than one space in the request line")),
    ("GET / XTTP/1.1\r\n", Not("malformed version")),
    ("G(T / HTTP/1.1\r\n", Not("method is not a token")),
    ("GET: / HTTP/1.1\r\n", Not("method is not a token")),
    ("\"GET\" / HTTP/1.1\r\n", Not("method is not a token")),
    ("G\u{c9}T / HTTP/1.1\r\n", Not("byte beyond ASCII in the request line")),
    ("\x16\x03\x01\x02\0\x01\0\x01\r\n", Bad),
];

/// Values of `Host` in a GET of `/`.
#[rustfmt::skip] // a row a line
const HOSTS: &[(&str, Want)] = &[
    ("example.com", Is("GET example.com / 1.1 none keep")),
    ("Example.COM:8080", Is("GET Example.COM:8080 / 1.1 none keep")),
    ("a", Is("GET a / 1.1 none keep")),
    ("a.", Is("GET a. / 1.1 none keep")),
    ("127.0.0.1:0", Is("GET 127.0.0.1:0 / 1.1 none keep")),
    ("a:65535", Is("GET a:65535 / 1.1 none keep")),
    ("a:00080", Is("GET a:00080 / 1.1 none keep")),
    ("[::1]", Is("GET [::1] / 1.1 none keep")),
    ("[2001:db8::1]:443", Is("GET [2001:db8::1]:443 / 1.1 none keep")),
    ("[::ffff:127.0.0.1]", Is("GET [::ffff:127.0.0.1] / 1.1 none keep")),
    ("a_b-c~d", Is("GET a_b-c~d / 1.1 none keep")),
    ("a!$&'()*+,;=b", Is("GET a!$&'()*+,;=b / 1.1 none keep")),
    ("xn--bcher-kva.example", Is("GET xn--bcher-kva.example / 1.1 none keep")),
    ("  a\t ", Is("GET a / 1.1 none keep")),
    ("", Not("empty host")),
    (" ", Not("empty host")),
    (":80", Not("empty host")),
    ("a:", Not("malformed port in the host")),
    ("a:65536", Not("malformed port in the host")),
    ("a:99999999999999999999", Not("malformed port in the host")),
    ("a:000080", Not("malformed port in the host")),
    ("a:-1", Not("malformed port in the host")),
    ("a:+80", Not("malformed port in the host")),
    ("a:8o", Not("malformed port in the host")),
    ("a:80:80", Not("malformed port in the host")),
    ("a: 80", Not("malformed port in the host")),
    ("a:80/x", Not("malformed port in the host")),
    ("::1", Not("empty host")),
    ("2001:db8::1", Not("malformed port in the host")),
    ("[::1", Not("malformed address in the host")),
    ("[]", Not("malformed address in the host")),
    ("[::1%25eth0]", Not("malformed address in the host")),
    ("[v1.x]", Not("malformed address in the host")),
    ("[1.2.3.4]", Not("malformed address in the host")),
    ("[::1]x", Not("malformed port in the host")),
    ("[::1]]", Not("malformed port in the host")),
    ("u@a", Not("malformed host")),
    ("u:p@a", Not("malformed port in the host")),
    ("a/x", Not("malformed host")),
    ("a?x", Not("malformed host")),
    ("a#x", Not("malformed host")),
    ("a\\x", Not("malformed host")),
    ("http://a", Not("malformed port in the host")),
    ("a b", Not("malformed host")),
    ("a\tb", Not("malformed host")),
    ("a%41", Not("malformed host")),
    ("a%00", Not("malformed host")),
    ("\u{e9}", Not("malformed host")),
    ("a\"b", Not("malformed host")),
    ("<a>", Not("malformed host")),
    ("a|b", Not("malformed host")),
    ("a{b}", Not("malformed host")),
    ("a^b", Not("malformed host")),
];

/// Fields of a POST of `/` to `a`, after `host: a`.
#[rustfmt::skip] // a row a line
const FIELDS: &[(&str, Want)] = &[
    // How the body ends.
    ("content-length: 0\r\n", Is("POST a / 1.1 length 0 keep")),
    ("Content-Length: 5\r\n", Is("POST a / 1.1 length 5 keep")),
    ("CONTENT-LENGTH:5\r\n", Is("POST a / 1.1 length 5 keep")),
    ("content-length:\t 5 \t\r\n", Is("POST a / 1.1 length 5 keep")),
    ("content-length: 00005\r\n", Is("POST a / 1.1 length 5 keep")),
    ("content-length: 9223372036854775807\r\n", Is("POST a / 1.1 length 9223372036854775807 keep")),
    ("content-length: 9223372036854775808\r\n", Not("content-length is too large")),
    ("content-length: 18446744073709551615\r\n", Not("content-length is too large")),
    ("content-length: 18446744073709551616\r\n", Not("content-length is too large")),
    ("content-length: 18446744073709551621\r\n", Not("content-length is too large")),
    ("content-length: 99999999999999999999999999\r\n", Not("content-length is too large")),
    ("content-length:\r\n", Not("content-length is not a number")),
    ("content-length: \r\n", Not("content-length is not a number")),
    ("content-length: +5\r\n", Not("content-length is not a number")),
    ("content-length: -5\r\n", Not("content-length is not a number")),
    ("content-length: -0\r\n", Not("content-length is not a number")),
    ("content-length: 5x\r\n", Not("content-length is not a number")),
    ("content-length: x5\r\n", Not("content-length is not a number")),
    ("content-length: 5 5\r\n", Not("content-length is not a number")),
    ("content-length: 5,5\r\n", Not("content-length is not a number")),
    ("content-length: 5, 5\r\n", Not("content-length is not a number")),
    ("content-length: 5, 6\r\n", Not("content-length is not a number")),
    ("content-length: 5,\r\n", Not("content-length is not a number")),
    ("content-length: ,5\r\n", Not("content-length is not a number")),
    ("content-length: 0x5\r\n", Not("content-length is not a number")),
    ("content-length: 5.0\r\n", Not("content-length is not a number")),
    ("content-length: 5e0\r\n", Not("content-length is not a number")),
    ("content-length: 1_0\r\n", Not("content-length is not a number")),
    ("content-length: \"5\"\r\n", Not("content-length is not a number")),
    ("content-length: 5;\r\n", Not("content-length is not a number")),
    ("content-length: \u{665}\r\n", Not("content-length is not a number")),
    ("content-length: \u{a0}5\r\n", Not("content-length is not a number")),
    ("content-length: \x0b5\r\n", Not("control byte")),
    ("content-length: 5\0\r\n", Not("null byte")),
    ("content-length: 5\r\ncontent-length: 6\r\n", Not("more than one content-length field")),
    ("content-length: 5\r\ncontent-length: 5\r\n", Not("more than one content-length field")),
    ("content-length: 5\r\nContent-Length: 5\r\n", Not("more than one content-length field")),
    ("content-length: 0\r\ncontent-length: 0\r\n", Not("more than one content-length field")),
    ("content-length: 5\r\ncontent-length: x\r\n", Not("more than one content-length field")),
    ("transfer-encoding: chunked\r\n", Is("POST a / 1.1 chunked keep")),
    ("Transfer-Encoding: CHUNKED\r\n", Is("POST a / 1.1 chunked keep")),
    ("transfer-encoding:chunked\r\n", Is("POST a / 1.1 chunked keep")),
    ("transfer-encoding:\tchunked\t\r\n", Is("POST a / 1.1 chunked keep")),
    ("transfer-encoding:\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: identity\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: gzip\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: gzip, chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunked, gzip\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunked, chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunked, identity\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: identity, chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: xchunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunkedx\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunk\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunked,\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: ,chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chunked;q=1\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: \"chunked\"\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: 'chunked'\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: chun ked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: \u{a0}chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: \u{212a}\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding: \x0bchunked\r\n", Not("control byte")),
    ("transfer-encoding: \x0cchunked\r\n", Not("control byte")),
    ("transfer-encoding: chunked\0\r\n", Not("null byte")),
    ("transfer-encoding: chunked\x7f\r\n", Not("control byte")),
    ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", Not("more than one transfer-encoding field")),
    ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", Not("more than one transfer-encoding field")),
    ("transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", Not("transfer-encoding other than chunked")),
    ("transfer-encoding\r\n: chunked\r\n", Not("field without a colon")),
    ("transfer-encoding : chunked\r\n", Not("space before the colon")),
    ("transfer-encoding\t: chunked\r\n", Not("space before the colon")),
    (" transfer-encoding: chunked\r\n", Not("folded field line")),
    ("x: y\r\n\ttransfer-encoding: chunked\r\n", Not("folded field line")),
    ("transfer-encoding:\r\n chunked\r\n", Not("folded field line")),
    ("transfer-encoding: chunked\n", Not("line feed without carriage return")),
    ("x: y\rtransfer-encoding: chunked\r\n", Not("carriage return without line feed")),
    ("x: y\ntransfer-encoding: chunked\r\n", Not("line feed without carriage return")),
    ("transfer_encoding: chunked\r\n", Is("POST a / 1.1 none keep; transfer_encoding: chunked")),
    ("content_length: 5\r\n", Is("POST a / 1.1 none keep; content_length: 5")),
    ("content-length: 5\r\ntransfer-encoding: chunked\r\n", Not("content-length with transfer-encoding")),
    ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", Not("content-length with transfer-encoding")),
    ("transfer-encoding: chunked\r\ncontent-length: 0\r\n", Not("content-length with transfer-encoding")),
    ("transfer-encoding: chunked\r\nx: y\r\nContent-length: 5\r\n", Not("content-length with transfer-encoding")),
    ("connection: content-length\r\ncontent-length: 5\r\n", Is("POST a / 1.1 length 5 keep")),
    ("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n", Is("POST a / 1.1 chunked keep")),
    // Hosts beside the one before.
    ("host: a\r\n", Not("more than one host field")),
    ("host: b\r\n", Not("more than one host field")),
    ("HOST: b\r\n", Not("more than one host field")),
    ("host : b\r\n", Not("space before the colon")),
    ("connection: host\r\n", Is("POST a / 1.1 none keep")),
    // Hop by hop.
    ("connection: close\r\n", Is("POST a / 1.1 none close")),
    ("Connection: Close\r\n", Is("POST a / 1.1 none close")),
    ("connection: keep-alive\r\n", Is("POST a / 1.1 none keep")),
    ("connection: keep-alive, close\r\n", Is("POST a / 1.1 none close")),
    ("connection: keep-alive\r\nconnection: close\r\n", Is("POST a / 1.1 none close")),
    ("connection:\r\n", Is("POST a / 1.1 none keep")),
    ("connection: ,, ,\r\n", Is("POST a / 1.1 none keep")),
    ("connection: closed\r\n", Is("POST a / 1.1 none keep")),
    ("connection: x-a\r\nx-a: 1\r\nx-b: 2\r\n", Is("POST a / 1.1 none keep; x-b: 2")),
    ("x-a: 1\r\nx-b: 2\r\nconnection: X-A\r\n", Is("POST a / 1.1 none keep; x-b: 2")),
    ("x-a: 1\r\nx-a: 2\r\nx-b: 3\r\nconnection: close , x-a\r\n", Is("POST a / 1.1 none close; x-b: 3")),
    ("connection: x-a\r\nconnection: x-b\r\nx-a: 1\r\nx-b: 2\r\n", Is("POST a / 1.1 none keep")),
    ("connection: @, x y, \u{e9}\r\nx: y\r\n", Is("POST a / 1.1 none keep; x: y")),
    ("connection: 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32\r\n", Fine),
    ("connection: 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33\r\n", Not("too many connection options")),
    ("keep-alive: timeout=5\r\nx: y\r\n", Is("POST a / 1.1 none keep; x: y")),
    ("proxy-connection: close\r\n", Is("POST a / 1.1 none keep")),
    ("te: trailers\r\n", Is("POST a / 1.1 none keep; te: trailers")),
    ("TE: gzip, Trailers;q=1, deflate\r\n", Is("POST a / 1.1 none keep")),
    ("TE: gzip, Trailers\r\nconnection: te\r\n", Is("POST a / 1.1 none keep; te: trailers")),
    ("te: gzip\r\n", Is("POST a / 1.1 none keep")),
    ("proxy-authorization: Basic x\r\n", Is("POST a / 1.1 none keep; proxy-authorization: Basic x")),
    ("trailer: x-sum\r\n", Is("POST a / 1.1 none keep; trailer: x-sum")),
    // Upgrades.
    ("upgrade: websocket\r\n", Is("POST a / 1.1 none keep")),
    ("upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAA\r\n", Is("POST a / 1.1 none keep")),
    ("upgrade: TLS/1.0\r\nconnection: upgrade\r\n", Is("POST a / 1.1 none keep")),
    ("upgrade: websocket\r\nconnection: upgrade\r\n", Not("upgrade by another method than GET")),
    // Expectations.
    ("expect: 100-continue\r\ncontent-length: 5\r\n", Is("POST a / 1.1 length 5 keep continue; expect: 100-continue")),
    ("Expect: 100-Continue\r\ntransfer-encoding: chunked\r\n", Is("POST a / 1.1 chunked keep continue; expect: 100-Continue")),
    ("expect: 100-continue\r\n", Is("POST a / 1.1 none keep; expect: 100-continue")),
    ("expect: 100-continue\r\ncontent-length: 0\r\n", Is("POST a / 1.1 length 0 keep; expect: 100-continue")),
    ("expect: 200-ok\r\n", Not("unknown expectation")),
    ("expect: 100-continue, x\r\n", Not("unknown expectation")),
    ("expect:\r\n", Not("unknown expectation")),
    ("expect: 100-continue\r\nexpect: 100-continue\r\n", Not("more than one expect field")),
    // Names and values.
    ("x: y\r\n", Is("POST a / 1.1 none keep; x: y")),
    ("X-Mixed-Case: Value\r\n", Is("POST a / 1.1 none keep; x-mixed-case: Value")),
    ("x:\r\n", Is("POST a / 1.1 none keep; x: ")),
    ("x: \t \r\n", Is("POST a / 1.1 none keep; x: ")),
    ("x:y\r\nz:\r\n", Is("POST a / 1.1 none keep; x: y; z: ")),
    ("x: a\tb  c\r\n", Is("POST a / 1.1 none keep; x: a\tb  c")),
    ("x: 1\r\nx: 2\r\n", Is("POST a / 1.1 none keep; x: 1; x: 2")),
    ("x: a: b\r\n", Is("POST a / 1.1 none keep; x: a: b")),
    ("x: caf\u{e9}\r\n", Is("POST a / 1.1 none keep; x: caf\u{e9}")),
    ("!#$%&'*+-.^_`|~09: y\r\n", Is("POST a / 1.1 none keep; !#$%&'*+-.^_`|~09: y")),
    ("cookie: a=b; c=d\r\nauthorization: Bearer x\r\n", Is("POST a / 1.1 none keep; cookie: a=b; c=d; authorization: Bearer x")),
    (": y\r\n", Not("empty field name")),
    ("x\r\n", Not("field without a colon")),
    ("x y\r\n", Not("field without a colon")),
    ("x : y\r\n", Not("space before the colon")),
    ("x\t: y\r\n", Not("space before the colon")),
    ("x y: z\r\n", Not("field name is not a token")),
    ("x\"y: z\r\n", Not("field name is not a token")),
    ("x(y): z\r\n", Not("field name is not a token")),
    ("x/y: z\r\n", Not("field name is not a token")),
    ("x@y: z\r\n", Not("field name is not a token")),
    ("x[y]: z\r\n", Not("field name is not a token")),
    ("x{y}: z\r\n", Not("field name is not a token")),
    ("x\u{e9}: z\r\n", Not("field name is not a token")),
    ("x\0: z\r\n", Not("null byte")),
    ("x\x01: z\r\n", Not("control byte")),
    ("x\r: z\r\n", Not("carriage return without line feed")),
    ("x: y\0\r\n", Not("null byte")),
    ("x: \x01\r\n", Not("control byte")),
    ("x: \x08\r\n", Not("control byte")),
    ("x: \x0b\r\n", Not("control byte")),
    ("x: \x1b\r\n", Not("control byte")),
    ("x: \x7f\r\n", Not("control byte")),
    ("x: y\r\r\n", Not("carriage return without line feed")),
    ("x: y\rz: 1\r\n", Not("carriage return without line feed")),
    ("x: y\r \r\n", Not("carriage return without line feed")),
    ("x: y\n", Not("line feed without carriage return")),
    ("x: y\n\r\n", Not("line feed without carriage return")),
    ("\n", Not("line feed without carriage return")),
    ("\r", Not("carriage return without line feed")),
    ("\rx: y\r\n", Not("carriage return without line feed")),
    ("x: y\r\n z\r\n", Not("folded field line")),
    ("x: y\r\n\tz\r\n", Not("folded field line")),
    ("x: y\r\n \r\n", Not("folded field line")),
    (" \r\n", Not("folded field line")),
];

/// Whole requests that fit no other table.
#[rustfmt::skip] // a row a line
const REQUESTS: &[(&str, Want)] = &[
    ("GET / HTTP/1.1\r\n\r\n", Not("no host field")),
    ("GET / HTTP/1.1\r\nx: y\r\n\r\n", Not("no host field")),
    ("GET / HTTP/1.0\r\n\r\n", Not("no host field")),
    ("OPTIONS * HTTP/1.1\r\n\r\n", Not("no host field")),
    ("GET http://b/ HTTP/1.1\r\n\r\n", Not("no host field")),
    ("GET http://b/ HTTP/1.0\r\n\r\n", Is("GET b / 1.0 none close")),
    ("GET http://b/ HTTP/1.1\r\nhost: u@a\r\n\r\n", Not("malformed host")),
    ("GET http://b/ HTTP/1.1\r\nhost:\r\n\r\n", Not("empty host")),
    ("GET / HTTP/1.1\r\n host: a\r\n\r\n", Not("space before the first field")),
    ("GET / HTTP/1.1\r\n\thost: a\r\n\r\n", Not("space before the first field")),
    ("GET / HTTP/1.1\r\n \r\nhost: a\r\n\r\n", Not("space before the first field")),
    ("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n", Is("GET a / 1.0 none keep")),
    ("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive, close\r\n\r\n", Is("GET a / 1.0 none close")),
    ("POST / HTTP/1.0\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", Is("POST a / 1.0 length 3 close")),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Not("transfer-encoding in HTTP/1.0")),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n", Not("transfer-encoding in HTTP/1.0")),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", Not("transfer-encoding in HTTP/1.0")),
    ("POST / HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n", Is("POST a / 1.0 length 1 close")),
    ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbodyGET /", Is("GET a / 1.1 length 4 keep")),
    ("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: b\r\n\r\n", Is("GET a / 1.1 none keep")),
    ("GET / HTTP/1.1\r\nhost: a\r\n\r\n\n\0garbage", Is("GET a / 1.1 none keep")),
    ("GET /chat HTTP/1.1\r\nhost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nsec-websocket-key: x\r\n\r\n", Is("GET a /chat 1.1 none keep websocket; sec-websocket-key: x")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c, websocket\r\nconnection: upgrade\r\n\r\n", Is("GET a / 1.1 none keep websocket")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: close\r\n\r\n", Is("GET a / 1.1 none close")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket2\r\nconnection: upgrade\r\n\r\n", Is("GET a / 1.1 none keep")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket/13\r\nconnection: upgrade\r\n\r\n", Is("GET a / 1.1 none keep")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n", Is("GET a / 1.1 none keep")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n", Is("GET a / 1.1 length 0 keep websocket")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 1\r\n\r\nx", Not("upgrade with a body")),
    ("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\ntransfer-encoding: chunked\r\n\r\n", Not("upgrade with a body")),
    ("GET / HTTP/1.0\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", Not("upgrade in HTTP/1.0")),
    ("HEAD / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", Not("upgrade by another method than GET")),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Not("version other than 1.0 and 1.1")),
    ("\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nx: y\r\n\r\n1", Is("POST a / 1.1 length 1 keep; x: y")),
];

/// Responses to a GET that asked for no upgrade.
#[rustfmt::skip] // a row a line
const RESPONSES: &[(&str, Want)] = &[
    ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX: y\r\n\r\n", Is("200 length 12 keep; x: y")),
    ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
    ("HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
    ("HTTP/1.1 200 Any Reason\tat \u{e4}ll\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
    ("HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n", Is("404 chunked keep")),
    ("HTTP/1.1 200 OK\r\n\r\n", Is("200 close close")),
    ("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\n", Is("200 close close")),
    ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n", Is("200 length 1 close")),
    ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", Is("200 length 1 close")),
    ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n", Is("200 length 1 keep")),
    ("HTTP/1.0 200 OK\r\n\r\n", Is("200 close close")),
    ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Not("transfer-encoding in HTTP/1.0")),
    ("HTTP/1.1 599 X\r\ncontent-length: 0\r\n\r\n", Is("599 length 0 keep")),
    ("HTTP/1.1 205 Reset\r\ncontent-length: 0\r\n\r\n", Is("205 length 0 keep")),
    ("HTTP/1.1 204 No Content\r\n\r\n", Is("204 none keep")),
    ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", Is("204 none keep")),
    ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", Is("204 none close")),
    ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", Is("204 none close")),
    ("HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", Is("304 none keep; etag: \"x\"")),
    ("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", Is("304 none keep; content-length: 9")),
    ("HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", Is("304 none keep")),
    ("HTTP/1.1 100 Continue\r\n\r\n", Is("100 none keep")),
    ("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Is("102 none keep")),
    ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", Is("103 none keep; link: </a>")),
    ("HTTP/1.1 103 Early Hints\r\ncontent-length: 3\r\n\r\n", Is("103 none close")),
    ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", Not("101 that nobody asked for")),
    ("HTTP/1.1 200 OK\r\nconnection: x-a\r\nx-a: 1\r\nx-b: 2\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep; x-b: 2")),
    ("HTTP/1.1 200 OK\r\nkeep-alive: timeout=5\r\nproxy-connection: x\r\nupgrade: h2c\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
    ("HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep; set-cookie: a; set-cookie: b")),
    ("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\ncontent-length: 0\r\n\r\n", Is("401 length 0 keep; www-authenticate: Basic")),
    ("HTTP/1.1 426 Upgrade Required\r\nupgrade: h2c\r\ncontent-length: 0\r\n\r\n", Is("426 length 0 keep")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n", Not("more than one content-length field")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", Not("more than one content-length field")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\n", Not("content-length is too large")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551617\r\n\r\n", Not("content-length is too large")),
    ("HTTP/1.1 304 OK\r\ncontent-length: x\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 204 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Not("content-length with transfer-encoding")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Not("content-length with transfer-encoding")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", Not("content-length with transfer-encoding")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", Not("transfer-encoding other than chunked")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n", Not("transfer-encoding other than chunked")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n", Not("transfer-encoding other than chunked")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Not("transfer-encoding other than chunked")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding:\r\n\r\n", Not("transfer-encoding other than chunked")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", Not("more than one transfer-encoding field")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding : chunked\r\n\r\n", Not("space before the colon")),
    ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", Not("space before the colon")),
    ("HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", Not("folded field line")),
    ("HTTP/1.1 200 OK\r\n x: y\r\n\r\n", Not("space before the first field")),
    ("HTTP/1.1 200 OK\r\nx\r\n\r\n", Not("field without a colon")),
    ("HTTP/1.1 200 OK\r\n: y\r\n\r\n", Not("empty field name")),
    ("HTTP/1.1 200 OK\r\nx(: y\r\n\r\n", Not("field name is not a token")),
    ("HTTP/1.1 200 OK\r\nx: \0\r\n\r\n", Not("null byte")),
    ("HTTP/1.1 200 OK\r\nx: \x01\r\n\r\n", Not("control byte")),
    ("HTTP/1.1 200 OK\r\nx: y\rz: 1\r\n\r\n", Not("carriage return without line feed")),
    ("HTTP/1.1 200 OK\r\nx: y\n\r\n", Not("line feed without carriage return")),
    ("HTTP/1.1 200 OK\r\nx: y\r\n\n", Not("line feed without carriage return")),
    ("HTTP/1.1 200 OK\n\r\n", Not("line feed without carriage return")),
    ("HTTP/1.1 200\n\r\n", Not("line feed without carriage return")),
    ("HTTP/1.1 200 OK\r\r\n\r\n", Not("carriage return without line feed")),
    ("HTTP/1.1 200 O\0K\r\n\r\n", Not("null byte")),
    ("HTTP/1.1 200 O\x1bK\r\n\r\n", Not("control byte")),
    ("HTTP/1.1  200 OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 \r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1\t200 OK\r\n\r\n", Not("malformed version")),
    ("HTTP/1.1 20 OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 2000 OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 20x OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 -20 OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 2\u{661} OK\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 OK 200\r\n\r\n", Not("malformed status line")),
    ("HTTP/1.1 000 OK\r\n\r\n", Not("status code outside 100 to 599")),
    ("HTTP/1.1 099 OK\r\n\r\n", Not("status code outside 100 to 599")),
    ("HTTP/1.1 600 OK\r\n\r\n", Not("status code outside 100 to 599")),
    ("HTTP/1.1 999 OK\r\n\r\n", Not("status code outside 100 to 599")),
    ("HTTP/1.2 200 OK\r\n\r\n", Not("version other than 1.0 and 1.1")),
    ("HTTP/2.0 200 OK\r\n\r\n", Not("version other than 1.0 and 1.1")),
    ("HTTP/0.9 200 OK\r\n\r\n", Not("version other than 1.0 and 1.1")),
    ("HTTP/2 200 OK\r\n\r\n", Not("malformed version")),
    ("http/1.1 200 OK\r\n\r\n", Not("malformed version")),
    ("ICY 200 OK\r\n\r\n", Not("malformed version")),
    (" HTTP/1.1 200 OK\r\n\r\n", Not("malformed version")),
    ("\r\nHTTP/1.1 200 OK\r\n\r\n", Not("empty line before the status line")),
    ("\nHTTP/1.1 200 OK\r\n\r\n", Not("empty line before the status line")),
    ("<html>hello</html>\r\n\r\n", Not("malformed version")),
    ("SSH-2.0-OpenSSH_9.6\r\n\r\n", Not("malformed version")),
    ("\x15\x03\x03\0\x02\x02\x16\r\n\r\n", Bad),
];

/// Responses to HEAD.
#[rustfmt::skip] // a row a line
const TO_HEAD: &[(&str, Want)] = &[
    ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n", Is("200 none keep; content-length: 12")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Is("200 none keep")),
    ("HTTP/1.1 200 OK\r\n\r\n", Is("200 none keep")),
    ("HTTP/1.1 204 OK\r\ncontent-length: 0\r\n\r\n", Is("204 none keep")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\n", Not("content-length is too large")),
    ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", Not("content-length is not a number")),
    ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Not("content-length with transfer-encoding")),
    ("HTTP/1.0 200 OK\r\ncontent-length: 12\r\n\r\n", Is("200 none close; content-length: 12")),
];

/// Responses to a GET that asked to switch to WebSocket.
#[rustfmt::skip] // a row a line
const TO_UPGRADE: &[(&str, Want)] = &[
    ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n\u{81}\0", Is("101 none keep upgrade; sec-websocket-accept: x")),
    ("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", Not("101 that nobody asked for")),
    ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", Not("101 that nobody asked for")),
    ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n", Not("101 that nobody asked for")),
    ("HTTP/1.0 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", Not("101 that nobody asked for")),
    ("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n", Is("426 length 0 keep")),
    ("HTTP/1.1 200 OK\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n", Is("200 length 0 keep")),
];

/// Every request of the tables.
pub(super) fn requests() -> Vec<RequestCase> {
    let case = |text: String, want| RequestCase {
        // Each letter beyond ASCII stands for the one byte of its number, as far as it has one.
        bytes: latin(&text),
        want,
    };
    let lines = LINES
        .iter()
        .map(|(line, want)| case(format!("{line}host: a\r\n\r\n"), *want));
    let hosts = HOSTS.iter().map(|(host, want)| {
        let text = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        case(text, *want)
    });
    let fields = FIELDS.iter().map(|(fields, want)| {
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        case(text, *want)
    });
    let whole = REQUESTS
        .iter()
        .map(|(text, want)| case((*text).to_owned(), *want));
    lines
        .chain(hosts)
        .chain(fields)
        .chain(whole)
        .chain(request_bytes())
        .collect()
}

/// Every byte, in every kind of place.
fn request_bytes() -> impl Iterator<Item = RequestCase> {
    let is = |fine: bool| if fine { Fine } else { Bad };
    let place = move |before: &str, byte: u8, after: &str, fine: bool| RequestCase {
        bytes: [before.as_bytes(), &[byte], after.as_bytes()]
            .concat()
            .into(),
        want: is(fine),
    };
    (0..=u8::MAX).flat_map(move |byte| {
        let token = super::parse::is_token(byte);
        let visible = byte.is_ascii_graphic();
        let text = visible || byte == b' ' || byte == b'\t' || byte >= 0x80;
        let end = " HTTP/1.1\r\nhost: a\r\n\r\n";
        let head = "GET / HTTP/1.1\r\nhost: a\r\n";
        [
            place("G", byte, &format!(" /{end}"), token),
            place(
                "GET /",
                byte,
                &format!("41{end}"),
                visible && !b"#\\\"<>`".contains(&byte),
            ),
            place("GET /?", byte, end, visible && !b"#\"<>".contains(&byte)),
            place(
                &format!("{head}x"),
                byte,
                ": y\r\n\r\n",
                token || byte == b':',
            ),
            place(&format!("{head}x: y"), byte, "z\r\n\r\n", text),
            place(
                &format!("{head}content-length: 1"),
                byte,
                "\r\n\r\n",
                byte.is_ascii_digit() || b" \t".contains(&byte),
            ),
            place(
                &format!("{head}transfer-encoding: chunked"),
                byte,
                "\r\n\r\n",
                b" \t".contains(&byte),
            ),
        ]
    })
}

/// Every response of the tables.
pub(super) fn responses() -> Vec<ResponseCase> {
    let to = |table: &'static [(&str, Want)], method: Method, asked_upgrade| {
        table.iter().map(move |(text, want)| ResponseCase {
            method: method.clone(),
            asked_upgrade,
            bytes: latin(text),
            want: *want,
        })
    };
    to(RESPONSES, Method::GET, false)
        .chain(to(TO_HEAD, Method::HEAD, false))
        .chain(to(TO_UPGRADE, Method::GET, true))
        .collect()
}

/// One byte a letter where that is possible, else UTF-8.
fn latin(text: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(text.len());
    for letter in text.chars() {
        match u8::try_from(u32::from(letter)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend_from_slice(letter.to_string().as_bytes()),
        }
    }
    bytes.into()
}

/// A request in one line.
pub(super) fn tell_request(request: &Request) -> String {
    let head = &request.head;
    let version = match head.version {
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    let mut line = format!(
        "{} {} {} {version} {} {}",
        head.method,
        head.authority,
        head.path,
        tell_framing(request.framing),
        if request.keep_alive { "keep" } else { "close" },
    );
    if request.expect_continue {
        line.push_str(" continue");
    }
    if request.upgrade == Some(Upgrade::Websocket) {
        line.push_str(" websocket");
    }
    line + &tell_fields(&head.headers)
}

/// A response in one line.
pub(super) fn tell_response(response: &Response) -> String {
    let mut line = format!(
        "{} {} {}",
        response.status.as_u16(),
        tell_framing(response.framing),
        if response.keep_alive { "keep" } else { "close" },
    );
    if response.upgrade {
        line.push_str(" upgrade");
    }
    line + &tell_fields(&response.headers)
}

fn tell_framing(framing: Framing) -> String {
    match framing {
        Framing::None => "none".to_owned(),
        Framing::Length(length) => format!("length {length}"),
        Framing::Chunked => "chunked".to_owned(),
        Framing::UntilClose => "close".to_owned(),
    }
}

fn tell_fields(headers: &HeaderMap) -> String {
    headers
        .iter()
        .map(|(name, value)| {
            let value: String = value
                .as_bytes()
                .iter()
                .map(|byte| char::from(*byte))
                .collect();
            format!("; {name}: {value}")
        })
        .collect()
}
