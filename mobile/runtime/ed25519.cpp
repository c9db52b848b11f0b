#include "runtime/ed25519.h"

#include <string.h>

#include "runtime/sha512.h"

namespace {

constexpr int kWords = 8;

/// 256 bits, the lowest word first: a scalar, or a value modulo p = 2^255 - 19 that need not be
/// below p. Words of 32 bits, because not every target multiplies two of 64.
struct Number {
  uint32_t w[kWords];
};

constexpr Number kZero = {{0}};
constexpr Number kOne = {{1}};
constexpr Number kPrime = {{0xffffffed, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                            0xffffffff, 0x7fffffff}};
/// Order of the base point: 2^252 + 27742317777372353535851937790883648493.
constexpr Number kOrder = {{0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de, 0x00000000, 0x00000000,
                            0x00000000, 0x10000000}};
/// The curve: -x^2 + y^2 = 1 + d x^2 y^2 with d = -121665 / 121666; and 2 d.
constexpr Number kD = {{0x135978a3, 0x75eb4dca, 0x4141d8ab, 0x00700a4d, 0x7779e898, 0x8cc74079,
                        0x2b6ffe73, 0x52036cee}};
constexpr Number kTwoD = {{0x26b2f159, 0xebd69b94, 0x8283b156, 0x00e0149a, 0xeef3d130, 0x198e80f2,
                           0x56dffce7, 0x2406d9dc}};
/// A square root of -1.
constexpr Number kRoot = {{0x4a0ea0b0, 0xc4ee1b27, 0xad2fe478, 0x2f431806, 0x3dfbd7a7, 0x2b4d0099,
                           0x4fc1df0b, 0x2b832480}};

// ---- numbers ----

Number load(const uint8_t* at) {
  Number n;
  for (int i = 0; i < kWords; i++)
    n.w[i] = at[4 * i] | (uint32_t)at[4 * i + 1] << 8 | (uint32_t)at[4 * i + 2] << 16 |
             (uint32_t)at[4 * i + 3] << 24;
  return n;
}

void store(const Number& n, uint8_t* at) {
  for (int i = 0; i < 4 * kWords; i++) at[i] = (uint8_t)(n.w[i / 4] >> (8 * (i % 4)));
}

uint32_t bit(const Number& n, int i) { return n.w[i / 32] >> (i % 32) & 1; }

bool is_below(const Number& a, const Number& b) {
  for (int i = kWords - 1; i >= 0; i--)
    if (a.w[i] != b.w[i]) return a.w[i] < b.w[i];
  return false;
}

/// a - b modulo 2^256; whether it was below 0 in *borrows.
Number minus(const Number& a, const Number& b, bool* borrows) {
  Number n;
  uint64_t borrow = 0;
  for (int i = 0; i < kWords; i++) {
    const uint64_t difference = (uint64_t)a.w[i] - b.w[i] - borrow;
    n.w[i] = (uint32_t)difference;
    borrow = difference >> 63;
  }
  *borrows = borrow != 0;
  return n;
}

/// What is left of `n` by `m`, which it is only a few times larger than.
Number reduced(Number n, const Number& m) {
  bool borrows;
  while (!is_below(n, m)) n = minus(n, m, &borrows);
  return n;
}

// ---- modulo p, where 2^256 is 38 ----

/// *n + carry * 2^256; carry is below 2^38, so that 38 of it fit.
void fold(Number* n, uint64_t carry) {
  while (carry != 0) {
    carry *= 38;
    for (int i = 0; i < kWords; i++) {
      carry += n->w[i];
      n->w[i] = (uint32_t)carry;
      carry >>= 32;
    }
  }
}

Number add(const Number& a, const Number& b) {
  Number n;
  uint64_t carry = 0;
  for (int i = 0; i < kWords; i++) {
    carry += (uint64_t)a.w[i] + b.w[i];
    n.w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  fold(&n, carry);
  return n;
}

Number subtract(const Number& a, const Number& b) {
  constexpr Number kWrap = {{38}};
  bool borrows;
  Number n = minus(a, b, &borrows);
  while (borrows) n = minus(n, kWrap, &borrows);
  return n;
}

Number multiply(const Number& a, const Number& b) {
  uint32_t wide[2 * kWords] = {};
  for (int i = 0; i < kWords; i++) {
    uint64_t carry = 0;  // (2^32 - 1)^2 + 2 (2^32 - 1) is 2^64 - 1: no sum overflows
    for (int j = 0; j < kWords; j++) {
      carry += (uint64_t)a.w[i] * b.w[j] + wide[i + j];
      wide[i + j] = (uint32_t)carry;
      carry >>= 32;
    }
    wide[i + kWords] = (uint32_t)carry;
  }
  Number n;
  uint64_t carry = 0;
  for (int i = 0; i < kWords; i++) {
    carry += (uint64_t)wide[i + kWords] * 38 + wide[i];
    n.w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  fold(&n, carry);
  return n;
}

Number square(const Number& a) { return multiply(a, a); }

bool is_same(const Number& a, const Number& b) {
  const Number x = reduced(a, kPrime), y = reduced(b, kPrime);
  return memcmp(&x, &y, sizeof(x)) == 0;
}

/// a to the power of `exponent`.
Number power(const Number& a, const Number& exponent) {
  Number n = kOne;
  for (int i = 255; i >= 0; i--) {
    n = square(n);
    if (bit(exponent, i)) n = multiply(n, a);
  }
  return n;
}

Number inverse(const Number& a) {
  Number exponent = kPrime;
  exponent.w[0] -= 2;  // Fermat
  return power(a, exponent);
}

// ---- points ----

/// x = X / Z, y = Y / Z, x y = T / Z.
struct Point {
  Number x, y, z, t;
};

constexpr Point kIdentity = {kZero, kOne, kOne, kZero};
constexpr Point kBase = {{{0x8f25d51a, 0xc9562d60, 0x9525a7b2, 0x692cc760, 0xfdd6dc5c, 0xc0a4e231,
                           0xcd6e53fe, 0x216936d3}},
                         {{0x66666658, 0x66666666, 0x66666666, 0x66666666, 0x66666666, 0x66666666,
                           0x66666666, 0x66666666}},
                         kOne,
                         {{0xa5b7dda3, 0x6dde8ab3, 0x775152f5, 0x20f09f80, 0x64abe37d, 0x66ea4e8e,
                           0xd78b7665, 0x67875f0f}}};

/// (E : H) and (F : G) of RFC 8032, section 5.1.4, to a point.
Point join(const Number& e, const Number& f, const Number& g, const Number& h) {
  return {multiply(e, f), multiply(g, h), multiply(f, g), multiply(e, h)};
}

/// Right for any two points of the curve, also equal ones.
Point add(const Point& p, const Point& q) {
  const Number a = multiply(subtract(p.y, p.x), subtract(q.y, q.x));
  const Number b = multiply(add(p.y, p.x), add(q.y, q.x));
  const Number c = multiply(multiply(p.t, kTwoD), q.t);
  const Number zz = multiply(p.z, q.z), d = add(zz, zz);
  return join(subtract(b, a), subtract(d, c), add(d, c), add(b, a));
}

Point twice(const Point& p) {
  const Number a = square(p.x), b = square(p.y), zz = square(p.z);
  const Number h = add(a, b), g = subtract(a, b);
  return join(subtract(h, square(add(p.x, p.y))), add(add(zz, zz), g), g, h);
}

Point negative(const Point& p) { return {subtract(kZero, p.x), p.y, p.z, subtract(kZero, p.t)}; }

/// Whether eight times the point is the identity.
bool has_small_order(const Point& p) {
  const Point q = twice(twice(twice(p)));
  return is_same(q.x, kZero) && is_same(q.y, q.z);
}

/// RFC 8032, section 5.1.3; false for bytes that are the encoding of no point.
bool decode(const uint8_t* at, Point* point) {
  Number y = load(at);
  const uint32_t sign = y.w[kWords - 1] >> 31;
  y.w[kWords - 1] &= 0x7fffffff;
  if (!is_below(y, kPrime)) return false;
  // x^2 = u / v; (p - 5) / 8 is 2^252 - 3.
  constexpr Number kExponent = {{0xfffffffd, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
                                 0xffffffff, 0xffffffff, 0x0fffffff}};
  const Number yy = square(y), u = subtract(yy, kOne), v = add(multiply(kD, yy), kOne);
  const Number v3 = multiply(square(v), v), v7 = multiply(square(v3), v);
  Number x = multiply(multiply(u, v3), power(multiply(u, v7), kExponent));
  const Number check = multiply(v, square(x));
  if (!is_same(check, u)) {
    if (!is_same(check, subtract(kZero, u))) return false;
    x = multiply(x, kRoot);
  }
  x = reduced(x, kPrime);
  if (sign == 1 && is_same(x, kZero)) return false;
  if ((x.w[0] & 1) != sign) x = subtract(kPrime, x);
  *point = {x, y, kOne, multiply(x, y)};
  return true;
}

void encode(const Point& p, uint8_t* at) {
  const Number z = inverse(p.z);
  const Number x = reduced(multiply(p.x, z), kPrime), y = reduced(multiply(p.y, z), kPrime);
  store(y, at);
  at[31] |= (uint8_t)((x.w[0] & 1) << 7);
}

/// s * base + k * a, bit by bit for both; scalars below the order.
Point combine(const Number& s, const Number& k, const Point& a) {
  const Point both = add(kBase, a);
  const Point* const choices[4] = {nullptr, &kBase, &a, &both};
  Point sum = kIdentity;
  for (int i = 252; i >= 0; i--) {
    sum = twice(sum);
    const Point* const more = choices[bit(s, i) + 2 * bit(k, i)];
    if (more != nullptr) sum = add(sum, *more);
  }
  return sum;
}

/// A number of 64 bytes modulo the order, bit by bit: what is held stays below 2^254.
Number modulo_order(const uint8_t* at) {
  Number n = kZero;
  for (int i = 511; i >= 0; i--) {
    for (int w = kWords - 1; w > 0; w--) n.w[w] = n.w[w] << 1 | n.w[w - 1] >> 31;
    n.w[0] = n.w[0] << 1 | (at[i / 8] >> (i % 8) & 1u);
    n = reduced(n, kOrder);
  }
  return n;
}

}  // namespace

namespace bcq {

bool ed25519_is_key(const uint8_t key[kPublicKeyBytes]) {
  Point a;
  return decode(key, &a) && !has_small_order(a);
}

bool ed25519_verify(const uint8_t key[kPublicKeyBytes], const void* message, size_t bytes,
                    const uint8_t signature[kSignatureBytes]) {
  const Number s = load(signature + 32);
  Point a;
  if (!is_below(s, kOrder) || !decode(key, &a) || has_small_order(a)) return false;
  Sha512 hash;
  hash.add(signature, 32);
  hash.add(key, kPublicKeyBytes);
  hash.add(message, bytes);
  uint8_t digest[kSha512Bytes];
  hash.finish(digest);
  // The first half must be the encoding of this point: another one of it does not fit.
  uint8_t found[32];
  encode(combine(s, modulo_order(digest), negative(a)), found);
  return memcmp(found, signature, sizeof(found)) == 0;
}

}  // namespace bcq
