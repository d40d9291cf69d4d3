//! What both ends of HTTP/1 are read and written with: requests of clients (`listener`) and answers of upstreams
//! (`upstream::answer`) are held to one strictness, by the same pieces.

pub mod chunks;
#[cfg(test)]
pub(crate) mod corpus;
pub mod ending;
pub mod line;
pub mod trailers;
pub mod write;
