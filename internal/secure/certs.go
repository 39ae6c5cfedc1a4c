package secure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Pair is a certificate and its private key, both PEM.
type Pair struct{ Cert, Key []byte }

// ErrPair means that what should be a certificate with its key is not.
var ErrPair = errors.New("secure: not a certificate with its key")

// backdate is how far clocks may differ.
const backdate = time.Hour

// NewAuthority makes an authority that signs itself and is valid until end.
func NewAuthority(end time.Time) (Pair, error) {
	return issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "kvtier authority"}, NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil)
}

// NewServer makes a certificate for a server known under hosts, names or addresses, that authority has signed. The replicas of a primary and
// the nodes of a cluster connect to each other with it, so that it is a client's as well.
func NewServer(authority Pair, hosts []string, end time.Time) (Pair, error) {
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: hosts[0]}, NotAfter: end, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return issue(t, &authority)
}

// Outdated says why a server's certificate has to be replaced: it ends before end, lacks one of hosts, or is not of this authority. "" if it
// need not be.
func Outdated(server, authority Pair, hosts []string, end time.Time) string {
	c, _, err := parse(server)
	if err != nil {
		return err.Error()
	}
	ca, _, err := parse(authority)
	switch {
	case err != nil:
		return err.Error()
	case c.CheckSignatureFrom(ca) != nil:
		return "signed by another authority"
	case c.NotAfter.Before(end):
		return "ends on " + c.NotAfter.Format(time.DateOnly)
	}
	for _, h := range hosts {
		if c.VerifyHostname(h) != nil {
			return "not valid for " + h
		}
	}
	return ""
}

// issue signs t, with its own key if there is no authority.
func issue(t *x509.Certificate, authority *Pair) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	// 127 bits, positive
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return Pair{}, err
	}
	t.NotBefore = time.Now().Add(-backdate)
	if !t.NotAfter.After(t.NotBefore) { // a certificate that has ended is useful to tests alone
		t.NotBefore = t.NotAfter.Add(-backdate)
	}
	parent, signer := t, key
	if authority != nil {
		if parent, signer, err = parse(*authority); err != nil {
			return Pair{}, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, fmt.Errorf("secure: sign: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}, nil
}

// parse reads what issue wrote.
func parse(p Pair) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	cert, _ := pem.Decode(p.Cert)
	key, _ := pem.Decode(p.Key)
	if cert == nil || key == nil {
		return nil, nil, ErrPair
	}
	c, err := x509.ParseCertificate(cert.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrPair, err)
	}
	k, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrPair, err)
	}
	private, ok := k.(*ecdsa.PrivateKey)
	if !ok || !slices.Equal(c.RawSubjectPublicKeyInfo, publicOf(private)) {
		return nil, nil, fmt.Errorf("%w: the key is another one's", ErrPair)
	}
	return c, private, nil
}

func publicOf(k *ecdsa.PrivateKey) []byte {
	b, _ := x509.MarshalPKIXPublicKey(k.Public()) // fails for unknown kinds of keys only
	return b
}
