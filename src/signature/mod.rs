//! What a model takes and gives: ports, their dimensions, and whether its rows are independent.

#[cfg(any(feature = "plugin", feature = "server"))]
mod declared;
mod info;

#[cfg(any(feature = "plugin", feature = "server"))]
pub use declared::{Dim, Port, Rows, Signature};
pub use info::{DimInfo, PortInfo};
