"""A stock guest seen as a port: the back end of vhost-user, and the rings of its virtio-net device."""
