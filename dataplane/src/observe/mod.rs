//! What the data path tells about itself: counters, latency histograms and one log line per exchange.
//!
//! Nothing here may cost an exchange more than some nanoseconds, and nothing here may make one wait. So each core
//! owns [`cells`] that only it writes, the [`registry`] sums them when somebody reads, [`metrics`] names what is
//! shown, and the [`access_log`] hands whole blocks of lines to a thread that may block in its place.

pub mod access_log;
pub mod cells;
pub mod exposition;
pub mod metrics;
pub mod registry;
mod rows;

pub use access_log::{AccessLog, AccessLogConfig, Lines, Record};
pub use cells::{
    AnswerCells, BOUNDS_US, CLASSES, ConnectionCells, ConnectionTotals, Detected, EdgeCells,
    ExchangeCells, HandshakeFailure, OpenConnection, OpenExchange, Redirected, RouteCells, Totals,
};
pub use registry::{Direction, EdgeKey, EdgeTotals, Registry, RouteKey, RouteTotals};
pub use rows::{
    CertificateRow, EndpointRow, EndpointState, KeySetRow, LimitRow, ListenerCertificateRow,
    PermitRow, ServiceRow, SourceRow,
};
