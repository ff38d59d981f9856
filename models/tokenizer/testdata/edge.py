"""Makes edge.jsonl: what tokenizers 0.22.2 does in unusual settings. Run from this folder; N is the number of rows per setting.

    N=14 python edge.py
"""
import json,os,random
from tokenizers import Tokenizer
base=json.load(open('../../../test/golden/tokenizers/wordpiece-uncased/tokenizer.json'))
cased=json.load(open('../../../test/golden/tokenizers/wordpiece-cased/tokenizer.json'))
corpus=[json.loads(l)['text'] for l in open('../../../test/golden/tokenizers/corpus.jsonl')]
def at(id,c,**k):
    d=dict(id=id,content=c,single_word=False,lstrip=False,rstrip=False,normalized=False,special=False); d.update(k); return d
rng=random.Random(5)
def mk(b,**kw):
    j=json.loads(json.dumps(b)); j.update(kw); return j
vn=len(base['model']['vocab']); vc=len(cased['model']['vocab'])
sp=[at(i,c,special=True) for i,c in enumerate(["[PAD]","[UNK]","[CLS]","[SEP]","[MASK]"])]
extra=[at(vn,"<l>",lstrip=True),at(vn+1,"<r>",rstrip=True),at(vn+2,"<lr>",lstrip=True,rstrip=True),at(vn+3,"word",single_word=True),
 at(vn+4,"Énorme",normalized=True),at(vn+5,"ab",normalized=True),at(vn+6,"abc",normalized=True),at(vn+7,"<S>",special=True,normalized=True,lstrip=True),
 at(vn+8,"two words",single_word=True,normalized=True),at(vn+9,"中x",normalized=True),at(vn+10,"é"), at(vn+11,"aba",normalized=False)]
def tr(n,**k):
    d=dict(direction="Right",max_length=n,strategy="LongestFirst",stride=0); d.update(k); return d
def pad(s="BatchLongest",**k):
    d=dict(strategy=s,direction="Right",pad_to_multiple_of=None,pad_id=0,pad_type_id=0,pad_token="[PAD]"); d.update(k); return d
def norm(**k):
    d=dict(type="BertNormalizer",clean_text=True,handle_chinese_chars=True,strip_accents=None,lowercase=True); d.update(k); return d
bertpp={"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}
ba=json.loads(json.dumps(base['post_processor'])); ba['pair']=[{"SpecialToken":{"id":"[CLS]","type_id":1}},{"Sequence":{"id":"B","type_id":1}},{"SpecialToken":{"id":"[SEP]","type_id":1}},{"Sequence":{"id":"A","type_id":0}}]
confs={
 'added':mk(base,added_tokens=sp+extra),
 'added-plain':mk(base,added_tokens=sp+extra,normalizer=None,pre_tokenizer=None),
 'bertpp':mk(base,post_processor=bertpp,truncation=tr(16,stride=2)),
 'nopp':mk(base,post_processor=None,decoder=None,truncation=tr(9,stride=1)),
 'left':mk(base,truncation=tr(14,direction="Left",stride=3),padding=pad({"Fixed":17},direction="Left",pad_id=4,pad_type_id=1,pad_token="[MASK]")),
 'first':mk(base,truncation=tr(40,strategy="OnlyFirst",stride=4),padding=pad(pad_to_multiple_of=7)),
 'second':mk(base,truncation=tr(40,strategy="OnlySecond",stride=4)),
 'room':mk(base,truncation=tr(3)),
 'short':mk(base,truncation=tr(11,stride=2)),
 'b-first':mk(base,post_processor=ba,truncation=tr(12,stride=2)),
 'no-clean':mk(base,normalizer=norm(clean_text=False)),
 'no-chinese':mk(base,normalizer=norm(handle_chinese_chars=False)),
 'strip-only':mk(base,normalizer=norm(lowercase=False,strip_accents=True)),
 'lower-only':mk(base,normalizer=norm(strip_accents=False)),
 'max4':mk(base,model=dict(base['model'],max_input_chars_per_word=4)),
 'max0':mk(base,model=dict(base['model'],max_input_chars_per_word=0)),
 'prefix':mk(base,model=dict(base['model'],continuing_subword_prefix='')),
}
def rtext():
    p=[]
    alpha=["<l>","<r>","<lr>","word","words","Énorme","énorme","ENORME","E\u0301norme","ab","abc","aba","abab","<S>","<s>","two words","Two Words","two  words","中x","中X","é","e\u0301","[CLS]","[MASK]"," ","  ","\t","\u00a0","\u3000","\u200b","a","b","x","_","9","-",".","n't","'s"," do not ","\u0323","\u0301","\u0345","\u0334","İ","ǅ","ẞ","한","각","𝄞","\u2b820","中","\u0378","\ufffd","\u0000","\u0085","\u000b","\u0000","the","encoder","weights"]
    return ''.join(rng.choice(alpha)+(' ' if rng.random()<.3 else '') for _ in range(rng.randint(1,14)))
out=open('edge.jsonl','w')
full=os.environ.get('N')
n=0
for name,j in confs.items():
    t=Tokenizer.from_str(json.dumps(j))
    conf={k:v for k,v in j.items()}; 
    m=dict(conf['model']); m.pop('vocab'); conf['model']=m
    print(json.dumps({'conf':name,'json':conf}),file=out)
    N=int(full) if full else 14
    for i in range(N):
        texts=[rtext() if rng.random()<.6 else rng.choice(corpus) for _ in range(2 if i%2 else 1)]
        if name=='second' and len(texts)==1: continue
        try: e=t.encode(*texts)
        except BaseException as ex:
            print(json.dumps({'texts':texts,'error':True}),file=out); continue
        r={'texts':texts,'ids':e.ids,'type_ids':e.type_ids,'tokens':e.tokens,'offsets':e.offsets,'attention_mask':e.attention_mask,'special_tokens_mask':e.special_tokens_mask,
           'decoded':t.decode(e.ids),'decoded_special':t.decode(e.ids,skip_special_tokens=False)}
        ov=[o.ids for o in e.overflowing]
        if ov: r['overflowing']=ov
        print(json.dumps(r,separators=(',',':')),file=out); n+=1
print(n)
