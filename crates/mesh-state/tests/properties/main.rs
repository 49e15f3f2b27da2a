//! What holds of every mesh: proved on small random ones against models that are too simple to be wrong.

mod balance;
mod dns;
mod order;
mod policy;
mod roster;
mod scan;
mod since;
mod universe;
mod warm;
