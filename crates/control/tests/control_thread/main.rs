//! The whole control thread: a CNI agent and a mesh file on one side, what the cores are told on the other.

mod agent;
mod certificates;
mod log;
mod mesh;
mod pods;
mod world;
