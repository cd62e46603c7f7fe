//! supervisor client
