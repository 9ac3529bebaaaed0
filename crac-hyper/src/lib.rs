//! Drains hyper servers for crac, and the tower layer that shuts the door.
