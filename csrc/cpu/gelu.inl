// GELU by the error function, for the namespace and target of the including file.

// erf(z), at most 1.9e-7 from the exact one: a polynomial of degree 15 in z^2, shifted to [-1, 1]
// where |z| <= 3.9 (fitted at Chebyshev nodes, weight |z| + 0.05), and 1 beyond.
inline Vector erf(Vector z) {
  constexpr float kLimit = 3.9f;
  constexpr float kCoefficients[] = {
      -0x1.66b918p-11f, 0x1.e999d8p-10f, -0x1.a73c12p-10f, 0x1.1099acp-9f,
      -0x1.c53dc8p-8f,  0x1.b5ef16p-7f,  -0x1.427f1p-6f,   0x1.df8194p-6f,
      -0x1.5e0deep-5f,  0x1.da07e8p-5f,  -0x1.2e559ap-4f,  0x1.73689ap-4f,
      -0x1.c0a44ap-4f,  0x1.13d8cp-3f,   -0x1.72b5f2p-3f,  0x1.734936p-2f,
  };
  const Vector square = multiply(z, z);
  const Vector u = multiply_add(square, broadcast(2.0f / (kLimit * kLimit)), broadcast(-1.0f));
  Vector ratio = broadcast(kCoefficients[0]);
  for (int i = 1; i < 16; ++i) ratio = multiply_add(ratio, u, broadcast(kCoefficients[i]));
  const Vector inside = multiply(ratio, z);
  const Vector outside = select(less(z, zero()), broadcast(-1.0f), broadcast(1.0f));
  return select(less(broadcast(kLimit * kLimit), square), outside, inside);
}

inline Vector gelu(Vector x) {
  const Vector half = multiply(x, broadcast(0.5f));
  return multiply_add(half, erf(multiply(x, broadcast(0.70710678f))), half);
}
