//! Who this node proxy talks to: the listener for peers, mutual TLS, control sessions, and the
//! making of links for lanes.
