//! Who is at the other end of a connection.

/// Who connected, and to what. Guests get it as the `peer` of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The number of the connection, unique in the life of the process.
    pub connection: u64,
    /// The address the connection came from.
    pub remote: String,
    /// The address it reached.
    pub local: String,
    /// The name of the listener that accepted it.
    pub listener: String,
}
