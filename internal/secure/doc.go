// Package secure makes what a Redis needs to be closed to everybody else: a certificate authority with a server certificate, and an access
// list with a user per role. It writes nothing and opens no connection.
package secure
