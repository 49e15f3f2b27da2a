//! A core on virtual time: the data plane's [`Runtime`](reactor::Runtime) without a kernel, a clock or luck.
//!
//! Everything that could differ between two runs comes from one seed: which ready task runs next, how long a packet is
//! under way, where a stream of bytes is cut. A run that fails is run again by its seed. What it is not: a model of TCP
//! (no congestion, no loss; order and completeness hold, delay and cuts do not) or of TLS, which draws for itself.

mod clock;
mod net;
mod runtime;

pub use net::{SimIo, SimListener, SimSocket, SimStream, Weather};
pub use runtime::{SimRuntime, Stalled, World};
